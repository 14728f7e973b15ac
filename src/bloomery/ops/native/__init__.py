"""The compiled library: finds what the package build made of the C files beside this one, and calls it by address.

Knows nothing of tensors. Without a compiler there is no library, and every caller has another way.
"""

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from bloomery.log import logger

LEVELS = ("portable", "avx2", "avx512", "avx512_bf16")
"""Instructions that kernels and the streaming read can use, in the order in which the library numbers them."""


class Reading(NamedTuple):
    """What came of a streaming read."""

    seconds: float  # of the fastest pass
    checksum: int  # the sum of all bytes read


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, or None where none was built (no C compiler) or the one that is there does not load."""
    file = Path(__file__).with_name("libbloomery.so")
    try:
        return _declared(ctypes.CDLL(str(file)))
    except (OSError, AttributeError) as error:
        if file.exists():
            logger.warning("%s cannot be used (%s): install bloomery again to rebuild it", file, error)
        return None


def _declared(handle: ctypes.CDLL) -> ctypes.CDLL:
    handle.bloomery_highest_level.argtypes = []
    handle.bloomery_highest_level.restype = ctypes.c_int
    handle.bloomery_replay.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
    handle.bloomery_replay.restype = None
    handle.bloomery_stream_read.argtypes = [
        ctypes.POINTER(ctypes.c_void_p),  # addresses
        ctypes.POINTER(ctypes.c_size_t),  # sizes
        ctypes.c_size_t,  # regions
        ctypes.c_int,  # threads
        ctypes.c_int,  # passes
        ctypes.c_int,  # level
        ctypes.POINTER(ctypes.c_double),  # seconds
        ctypes.POINTER(ctypes.c_uint64),  # checksum
    ]
    handle.bloomery_stream_read.restype = ctypes.c_int
    return handle


@cache
def level() -> int:
    """Number of the highest of `LEVELS` that this processor has. Raises ValueError without the library."""
    handle = library()
    if handle is None:
        raise ValueError("there are no levels: the library was not built")
    return int(handle.bloomery_highest_level())


def stream_read(regions: Sequence[tuple[int, int]], threads: int, passes: int, level: int | None = None) -> Reading:
    """Read regions of memory as one stream, each thread its own contiguous part of it.

    Args:
        regions: (address, bytes) of each; the caller keeps the memory alive.
        passes: how many times; the fastest counts, and starting the threads is in none of them.
        level: of instructions; None takes the highest this processor has.

    Raises:
        ValueError: there is no library, this processor has no such level, or a number is below 1.
        OSError: the threads could not be started.
    """
    handle = library()
    if handle is None:
        raise ValueError("nothing can be read natively: the library was not built")
    highest = int(handle.bloomery_highest_level())
    level = highest if level is None else level
    if not 0 <= level <= highest:
        raise ValueError(f"level {level} is none of this processor's: give 0 to {highest}")
    if threads < 1 or passes < 1:
        raise ValueError(f"threads and passes must be at least 1, not {threads} and {passes}")
    count = len(regions)
    seconds, checksum = ctypes.c_double(), ctypes.c_uint64()
    failed = handle.bloomery_stream_read(
        (ctypes.c_void_p * count)(*(address for address, _ in regions)),
        (ctypes.c_size_t * count)(*(size for _, size in regions)),
        count,
        threads,
        passes,
        level,
        ctypes.byref(seconds),
        ctypes.byref(checksum),
    )
    if failed:
        raise OSError(failed, f"{threads} threads could not be started: {os.strerror(failed)}")
    return Reading(seconds.value, checksum.value)
