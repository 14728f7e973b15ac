"""One call of a native kernel: its fields, written down as numbers of eight bytes each. Knows no tensor's meaning."""

import ctypes
import struct
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bloomery.ops import native

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""What kernels take, numbered as in kernels.h."""


def address(tensor: Tensor | None) -> int:
    """Where a tensor begins; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def call(name: str, *fields: int, level: int | None = None, threads: int | None = None) -> None:
    """Call kernel `name` with its fields in the order of its struct, and then its level and number of threads.

    Args:
        fields: numbers, and addresses of tensors, which the caller keeps alive.
        level: of `native.LEVELS`, one that this processor has; None: the highest.
        threads: None: as many as PyTorch's.
    """
    level = native.level() if level is None else level
    threads = torch.get_num_threads() if threads is None else threads
    _kernel(name)(struct.pack(f"{len(fields) + 2}q", *fields, level, threads))


@cache
def _kernel(name: str) -> Any:
    handle = native.library()
    if handle is None:
        raise ValueError(f"there is no kernel {name}: the library was not built")
    function = handle[f"bloomery_{name}"]
    function.argtypes = [ctypes.c_char_p]
    function.restype = None
    return function
