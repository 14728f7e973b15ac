"""How fast this machine reads a model's own weights: the ruler behind "% of the measured bandwidth".

Knows no model and no environment: whoever asks brings the tensors and the folder that remembers.
"""

import ctypes
import hashlib
import json
import math
import platform
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
from torch import Tensor

from bloomery.disk.small import as_json, write_beside
from bloomery.log import logger
from bloomery.ops import native

PASSES = 5
MOST_BYTES = 4 << 30
"""Of a larger model this much is read: more would take longer and say nothing else."""

Region = tuple[int, int]
"""Address and bytes of a piece of memory."""


@dataclass(frozen=True)
class Bandwidth:
    """One measurement. `numpy` is the ruler of a build without the compiled library, and reads less than there is."""

    gb_per_s: float  # 1 GB = 1e9 bytes
    bytes: int  # read in each pass
    threads: int
    ruler: Literal["native", "numpy"]
    cached: bool  # measured by an earlier run


def read_bandwidth(tensors: Iterable[Tensor], threads: int, cache_dir: Path | None) -> Bandwidth:
    """Streaming read bandwidth over the memory of `tensors`: best of 5 passes, at most 4 GiB of them.

    Args:
        tensors: CPU tensors, such as a decoder's parameters.
        threads: as many as the model is run with.
        cache_dir: the folder that remembers measurements by processor, threads, bytes and ruler; None measures anew.
            A folder or file that cannot be read or written costs a new measurement and nothing else.

    Raises:
        ValueError: there is nothing to read, or a tensor is not contiguous CPU memory, or `threads` is below 1.
    """
    held = list(tensors)  # read by address below, so they must live until then
    regions = _regions(held)
    total = sum(size for _, size in regions)
    if total == 0 or threads < 1:
        raise ValueError(f"a bandwidth needs bytes and threads, not {total} bytes and {threads} threads")
    ruler: Literal["native", "numpy"] = "numpy" if native.library() is None else "native"
    key = {"cpu": cpu_name(), "threads": threads, "bytes": total, "ruler": ruler}
    file = None if cache_dir is None else _cache_file(cache_dir, key)
    known = None if file is None else _recall(file, key)
    if known is not None:
        return Bandwidth(known, total, threads, ruler, cached=True)
    if ruler == "native":
        seconds = native.stream_read(regions, threads, PASSES).seconds
    else:
        seconds = _numpy_seconds(regions, threads, PASSES)
    measured = total / max(seconds, 1e-9) / 1e9
    if file is not None:
        _remember(file, key | {"gb_per_s": measured})
    return Bandwidth(measured, total, threads, ruler, cached=False)


def cpu_name() -> str:
    """What the processor calls itself, or at least its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _regions(tensors: Iterable[Tensor]) -> list[Region]:
    regions = []
    left = MOST_BYTES
    for tensor in tensors:
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(f"bandwidth is read over contiguous CPU memory, not {tensor.device} {tensor.stride()}")
        size = min(tensor.nbytes, left)
        if size:
            regions.append((tensor.data_ptr(), size))
            left -= size
    return regions


def _numpy_seconds(regions: Sequence[Region], threads: int, passes: int) -> float:
    """Seconds of the fastest pass of a plain sum, for builds without the library; numpy adds outside Python's lock."""
    panels = []
    for address, size in regions:
        words = np.frombuffer(memoryview((ctypes.c_char * size).from_address(address)), np.uint64, size // 8)
        panels.append(np.array_split(words, threads))

    def read(thread: int) -> None:
        for panel in panels:
            panel[thread].sum()

    best = math.inf
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(passes):
            start = perf_counter()
            list(pool.map(read, range(threads)))
            best = min(best, perf_counter() - start)
    return best


def _cache_file(folder: Path, key: dict[str, Any]) -> Path:
    """One file a measurement, so that two runs which write at once lose nothing."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder / f"bandwidth-{digest[:16]}.json"


def _recall(file: Path, key: dict[str, Any]) -> float | None:
    """The bandwidth a file remembers for `key`; None whenever it does not say so beyond doubt."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    value = kept.pop("gb_per_s", None) if isinstance(kept, dict) else None
    sound = isinstance(value, float) and math.isfinite(value) and value > 0 and kept == key
    return value if sound else None


def _remember(file: Path, kept: dict[str, Any]) -> None:
    try:
        write_beside(file, as_json(kept))
    except OSError as error:
        logger.debug("the measured bandwidth is not kept: %s", error)
