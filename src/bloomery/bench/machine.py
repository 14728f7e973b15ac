"""What a measurement was made on, as plain values: a figure without these says little."""

import os
import platform
from contextlib import suppress
from pathlib import Path

import torch

from bloomery import __version__
from bloomery.bench.bandwidth import cpu_name
from bloomery.devices import CPUS, Threads
from bloomery.ops import native

CACHES = CPUS / "cpu0" / "cache"


def machine(threads: Threads) -> dict[str, object]:
    """Processor, caches, threads, versions, and how busy the machine is before the measurement begins.

    Args:
        threads: that are measured.
    """
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "cpu instructions": torch.backends.cpu.get_cpu_capability(),
        "caches": caches(CACHES),
        "threads": threads.count,
        "threads from": threads.source,
        "load at start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "native kernels": native.library() is not None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "bloomery": __version__,
    }


def caches(folder: Path) -> dict[str, str]:
    """Sizes of a core's caches as the system writes them, such as {"L2 unified": "1024K"}; empty where it does not."""
    found = {}
    for index in sorted(folder.glob("index*")):
        with suppress(OSError):
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            found[f"L{level} {kind.lower()}"] = size
    return found
