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

WAYS = ("portable", "avx2", "avx512")
"""Instructions the streaming read can use, in the order in which the library numbers them."""
LEVELS = ("portable", "avx2", "avx512", "avx512_bf16")
"""Instructions that kernels can use, in the order in which the library numbers them."""


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
    handle.bloomery_stream_widest.argtypes = []
    handle.bloomery_stream_widest.restype = ctypes.c_int
    handle.bloomery_replay.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
    handle.bloomery_replay.restype = None
    handle.bloomery_stream_read.argtypes = [
        ctypes.POINTER(ctypes.c_void_p),  # addresses
        ctypes.POINTER(ctypes.c_size_t),  # sizes
        ctypes.c_size_t,  # regions
        ctypes.c_int,  # threads
        ctypes.c_int,  # passes
        ctypes.c_int,  # way
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


def stream_ways() -> tuple[str, ...]:
    """The `WAYS` this processor has, the widest last; none without the library."""
    handle = library()
    return () if handle is None else WAYS[: handle.bloomery_stream_widest() + 1]


def stream_read(regions: Sequence[tuple[int, int]], threads: int, passes: int, way: str | None = None) -> Reading:
    """Read regions of memory as one stream, each thread its own contiguous part of it.

    Args:
        regions: (address, bytes) of each; the caller keeps the memory alive.
        passes: how many times; the fastest counts, and starting the threads is in none of them.
        way: one of `stream_ways()`; None takes the widest.

    Raises:
        ValueError: there is no library or no such way, or a number is below 1.
        OSError: the threads could not be started.
    """
    handle, ways = library(), stream_ways()
    if handle is None or (way is not None and way not in ways):
        raise ValueError(f"no way {way or 'at all'} to read natively: this build and processor have {ways}")
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
        ways.index(way or ways[-1]),
        ctypes.byref(seconds),
        ctypes.byref(checksum),
    )
    if failed:
        raise OSError(failed, f"{threads} threads could not be started: {os.strerror(failed)}")
    return Reading(seconds.value, checksum.value)
