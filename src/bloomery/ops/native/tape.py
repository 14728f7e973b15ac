"""Calls of native kernels, written down while they are made, and made again by one loop in C.

Knows neither what is computed nor for whom. What is recorded must be native altogether: anything else that computes
would be missing when it is played, so it is refused.
"""

import ctypes
import math
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bloomery.ops import native
from bloomery.ops.native.calls import WRITTEN, Written

VIEWS = {
    *("alias", "as_strided", "detach", "expand", "narrow", "permute", "select", "slice", "split", "split_with_sizes"),
    *("squeeze", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view", "_unsafe_view", "_reshape_alias"),
}
NEW = {"empty", "new_empty", "empty_like"}
CHUNK = 2**22
ALIGNMENT = 64
"""Bytes."""


class NotNative(Exception):
    """Something was computed that no kernel of ours computes."""


class Arena:
    """Memory for what is made on the way, the same for all tapes of which one at a time is played.

    What a tensor held is taken again once nobody has it: all layers use the same few pages, which stay in the cache.
    """

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []
        self.rewind()

    def rewind(self) -> None:
        """Begin at the beginning, for the next tape."""
        self._chunk, self._used = 0, 0
        # By size. One for each tape: what an earlier one had is this one's to give already.
        self._free: defaultdict[int, list[int]] = defaultdict(list)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Numbers, whatever they are, that no living tensor has which was taken since the beginning."""
        size = math.prod(shape) * dtype.itemsize
        if not size:
            return torch.empty(shape, dtype=dtype)
        free = self._free[-(-size // ALIGNMENT) * ALIGNMENT]
        place = free.pop() if free else self._next(size)
        memory = (ctypes.c_char * size).from_address(place)
        weakref.finalize(memory, free.append, place).atexit = False  # when no tensor or view of one is left
        return torch.frombuffer(memory, dtype=dtype).view(shape)

    def _next(self, size: int) -> int:
        while self._chunk < len(self._chunks) and self._used + size > len(self._chunks[self._chunk]):
            self._chunk, self._used = self._chunk + 1, 0
        if self._chunk == len(self._chunks):
            self._chunks.append(torch.empty(max(CHUNK, size), dtype=torch.uint8))
        place = self._chunks[self._chunk].data_ptr() + self._used
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        return place

    def has(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of its own."""
        place = tensor.data_ptr()
        return any(chunk.data_ptr() <= place < chunk.data_ptr() + len(chunk) for chunk in self._chunks)


class Tape:
    """What a function has called, to be called again with the same tensors, whatever they hold by then.

    Args:
        function: computes by native kernels alone.
        arena: where what it makes lies, its result too: until another tape of this arena is played.

    Raises:
        NotNative: it does not; it has run up to there.
    """

    def __init__(self, function: Callable[[], Tensor], arena: Arena) -> None:
        handle = native.library()
        assert handle is not None, "without the library nothing is native"
        arena.rewind()
        self._arena = arena
        self._tensors: list[Tensor] = []  # what it reads that lies elsewhere
        calls: list[tuple[Any, bytes]] = []
        token = WRITTEN.set(Written(calls, self._keep))
        try:
            with _Watch(arena):
                self.result = function()
        finally:
            WRITTEN.reset(token)
        pointers = ctypes.c_void_p * len(calls)
        self._fields = [ctypes.create_string_buffer(fields, len(fields)) for _, fields in calls]
        self._arguments = pointers(*(ctypes.addressof(fields) for fields in self._fields))
        self._kernels = pointers(*(ctypes.cast(kernel, ctypes.c_void_p).value for kernel, _ in calls))
        self._replay = handle.bloomery_replay

    def _keep(self, tensor: Tensor) -> None:
        if not self._arena.has(tensor):
            self._tensors.append(tensor)

    def play(self) -> Tensor:
        """Compute again: the same tensor every time."""
        self._replay(self._kernels, self._arguments, len(self._fields))
        return self.result


class _Watch(TorchDispatchMode):
    """Makes what is made in an arena, and refuses what is computed."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arena = arena

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Of PyTorch's: otherwise the first call would import its compiler, 66 MB and a second of it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # flatten, reshape and their like consist of others, which copy or do not
            out = func.decompose(*args, **(kwargs or {}))
        if out is not NotImplemented:
            return out
        name = func.overloadpacket.__name__
        if name not in VIEWS and name not in NEW:
            raise NotNative(str(func))
        out = func(*args, **(kwargs or {}))
        return self.arena.take(tuple(out.shape), out.dtype) if name in NEW else out
