"""Calls of native kernels, written down while they are made, and made again by one loop in C.

Knows neither what is computed nor for whom. What is recorded must be native altogether: anything else that computes
would be missing when it is played, so it is refused.
"""

import ctypes
import math
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
    """Memory for what is made on the way, the same for all tapes of which one at a time is played."""

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []
        self.rewind()

    def rewind(self) -> None:
        """Begin at the beginning, for the next tape."""
        self._chunk, self._used = 0, 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The next numbers, whatever they are."""
        size = math.prod(shape) * dtype.itemsize
        while self._chunk < len(self._chunks) and self._used + size > len(self._chunks[self._chunk]):
            self._chunk, self._used = self._chunk + 1, 0
        if self._chunk == len(self._chunks):
            self._chunks.append(torch.empty(max(CHUNK, size), dtype=torch.uint8))
        numbers = self._chunks[self._chunk][self._used : self._used + size].view(dtype).view(shape)
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        return numbers


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
        self._written = Written([], [])
        token = WRITTEN.set(self._written)
        try:
            with _Watch(arena):
                self.result = function()
        finally:
            WRITTEN.reset(token)
        calls = self._written.calls
        pointers = ctypes.c_void_p * len(calls)
        self._fields = [ctypes.create_string_buffer(fields, len(fields)) for _, fields in calls]
        self._arguments = pointers(*(ctypes.addressof(fields) for fields in self._fields))
        self._kernels = pointers(*(ctypes.cast(kernel, ctypes.c_void_p).value for kernel, _ in calls))
        self._replay = handle.bloomery_replay

    def play(self) -> Tensor:
        """Compute again: the same tensor every time."""
        self._replay(self._kernels, self._arguments, len(self._fields))
        return self.result


class _Watch(TorchDispatchMode):
    """Makes what is made in an arena, and refuses what is computed."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arena = arena

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
