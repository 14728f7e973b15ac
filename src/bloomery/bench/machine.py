"""What a measurement was made on, as plain values: a figure without these says little."""

import os
import platform
from contextlib import suppress
from pathlib import Path

import torch

from bloomery import __version__
from bloomery.bench.bandwidth import cpu_name
from bloomery.devices import threads
from bloomery.ops import native

CPUS = Path("/sys/devices/system/cpu")
CACHES = CPUS / "cpu0" / "cache"


def machine() -> dict[str, object]:
    """Processor, caches, threads, versions, and how busy the machine is before the measurement begins."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "cpu instructions": torch.backends.cpu.get_cpu_capability(),
        "caches": caches(CACHES),
        "threads": threads(),
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


def physical_cores(folder: Path = CPUS) -> int:
    """Cores that this process may run on: processors that share one count once, where the system says which do."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    shared = set()
    for number in allowed:
        siblings = str(number)
        with suppress(OSError):
            siblings = (folder / f"cpu{number}" / "topology" / "thread_siblings_list").read_text().strip()
        shared.add(siblings)
    return len(shared)
