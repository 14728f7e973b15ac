"""One call of a native kernel: its fields, written down as numbers of eight bytes each. Knows no tensor's meaning."""

import ctypes
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bloomery.ops import native

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""What kernels take, numbered as in kernels.h."""
KEPT_DTYPES = DTYPES | {torch.int8: 2}
"""What keys and values may be kept in for attention."""


class Written(NamedTuple):
    """What `tape` writes down: each kernel with its fields. Who has written is told of the tensors that they name."""

    calls: list[tuple[Any, bytes]]
    keep: Callable[[Tensor], None]


WRITTEN: ContextVar[Written | None] = ContextVar("written", default=None)
"""None unless calls are being written down."""
THREADS: ContextVar[int | None] = ContextVar("threads", default=None)
"""Of kernels, where PyTorch has another number; see `torch_alone`."""


def thread_count() -> int:
    """Threads of kernels: as many as PyTorch has (`devices.set_threads`), or had outside of `torch_alone`."""
    return THREADS.get() or torch.get_num_threads()


@contextmanager
def torch_alone() -> Iterator[None]:
    """PyTorch computes on the calling thread alone, kernels on as many threads as before.

    PyTorch's threads stay awake for milliseconds after each of its larger operations, and keep from the next kernel the
    cores that it needs (docs/log.md).
    """
    before = torch.get_num_threads()
    token = THREADS.set(thread_count())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        THREADS.reset(token)


def address(tensor: Tensor | None) -> int:
    """Where a tensor begins; 0 for None."""
    if tensor is None:
        return 0
    if (written := WRITTEN.get()) is not None:
        written.keep(tensor)
    return tensor.data_ptr()


def call(name: str, *fields: int, level: int | None = None, threads: int | None = None) -> None:
    """Call kernel `name` with its fields in the order of its struct.

    Args:
        fields: numbers, and addresses of tensors, which the caller keeps alive.
        level: of instructions; None takes the highest this processor has.
        threads: at most so many; None takes `thread_count()`.
    """
    level = native.level() if level is None else level
    threads = thread_count() if threads is None else threads
    kernel, packed = _kernel(name), struct.pack(f"{len(fields) + 2}q", *fields, level, threads)
    kernel(packed)
    if (written := WRITTEN.get()) is not None:
        written.calls.append((kernel, packed))


@cache
def _kernel(name: str) -> Any:
    handle = native.library()
    if handle is None:
        raise ValueError(f"there is no kernel {name}: the library was not built")
    function = handle[f"bloomery_{name}"]
    function.argtypes = [ctypes.c_char_p]
    function.restype = None
    return function
