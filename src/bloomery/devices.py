"""Which device, dtype and CPU threads to run on, and what memory is left there. Knows no model."""

import ctypes
import math
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from bloomery.errors import UsageError
from bloomery.log import logger

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of what mallopt sets, from glibc's malloc.h."""
MOST_THREADS = 1024
CPUS = Path("/sys/devices/system/cpu")
GROUPS = Path("/sys/fs/cgroup")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """A device by name; `auto` takes an NVIDIA GPU where there is one.

    Raises:
        UsageError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # `meta` makes tensors, but computes nothing
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UsageError(f"device '{name}' cannot be used here ({reason}): try --device cpu") from None
    return device


def pick_dtype(name: str) -> torch.dtype | None:
    """A dtype by name; None for `auto`, which keeps the checkpoint's.

    Raises:
        UsageError: not a dtype we compute in.
    """
    if name == "auto":
        return None
    if name not in DTYPES:
        raise UsageError(f"dtype '{name}' is not one of: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def pick_cache_dtype(name: str) -> torch.dtype | None:
    """As `pick_dtype`, of keys and values, which may be kept in 8 bits as well."""
    return torch.int8 if name == "int8" else pick_dtype(name)


@dataclass(frozen=True)
class Threads:
    """How many CPU threads a process computes on, and why."""

    count: int
    source: str


def threads() -> int:
    """CPU threads that a run uses."""
    return torch.get_num_threads()


def set_threads(asked: int | None = None) -> Threads:
    """Have this process compute on as many CPU threads as `pick_threads` says: PyTorch, and kernels after it.

    The number is the process's, for all models in it. A thread of Python that has computed before keeps its own.

    Raises:
        UsageError: as `pick_threads`.
    """
    picked, there = pick_threads(asked), len(_processors())
    if picked.count > there:
        logger.warning(
            "%d threads (%s) share the %d processors that this process may run on: they will wait for each other",
            picked.count,
            picked.source,
            there,
        )
    torch.set_num_threads(picked.count)
    return picked


def pick_threads(asked: int | None = None) -> Threads:
    """The CPU threads to compute on: those asked for, else what OMP_NUM_THREADS says, else the physical cores that this
    process may run on, or fewer where a control group gives it less of their time.

    Raises:
        UsageError: a number that no process can have.
    """
    if asked is not None:
        return Threads(_checked("threads", asked), "asked for")
    if said := os.environ.get("OMP_NUM_THREADS", "").strip():
        first = said.partition(",")[0].strip()  # what follows is of teams within teams
        return Threads(_checked("OMP_NUM_THREADS", int(first) if first.isdecimal() else said), "OMP_NUM_THREADS")
    cores, quota = physical_cores(), cpu_quota()
    if quota is not None and math.ceil(quota) < cores:
        return Threads(max(1, math.ceil(quota)), f"a CPU quota of {quota:g}")
    return Threads(min(cores, MOST_THREADS), "physical cores")


def _checked(name: str, count: object) -> int:
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_THREADS:
        raise UsageError(f"{name} is {count!r}: give a whole number from 1 to {MOST_THREADS}, or leave it out")
    return count


def physical_cores(folder: Path = CPUS) -> int:
    """Cores that this process may run on: processors that share one count once, where the system says which do."""
    shared = set()
    for number in _processors():
        siblings = str(number)
        with suppress(OSError):
            siblings = (folder / f"cpu{number}" / "topology" / "thread_siblings_list").read_text().strip()
        shared.add(siblings)
    return len(shared)


def _processors() -> list[int]:
    """Numbers of the processors that this process may run on."""
    return sorted(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def cpu_quota() -> float | None:
    """The most processors whose time control groups give this process; None where they do not limit it."""
    return min((quota for root, path, _ in _groups("cpu") for quota in _quotas(root, path)), default=None)


def keep_freed_memory() -> bool:
    """Ask the C library to keep what this process frees for what it takes next; False where it cannot be asked.

    glibc takes large blocks from the kernel one by one and gives them back at once. Every step of training then has all
    its pages made and zeroed anew, a fifth to a quarter of its time (docs/log.md). It holds for the
    whole process from now on, which may then hold a few of its largest blocks more than it uses.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    # mallopt(3): no blocks of their own, and nothing is given back from the end of the heap.
    return bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, -1))


def memory_left(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device; None where the system does not say.

    On a CPU under Linux: what the kernel could hand out without swapping, or less where a control group allows less.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    rooms = [1024 * value for value in _numbers(Path("/proc/meminfo"), "MemAvailable:")]
    for root, path, version in _groups("memory"):
        if version == 2:
            rooms += _rooms(root, path, "memory.max", "memory.current", "file")
        else:
            rooms += _rooms(root, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
    return max(0, min(rooms)) if rooms else None


def _groups(controller: str, listed: Path = Path("/proc/self/cgroup")) -> Iterator[tuple[Path, str, int]]:
    """The control groups of this process that may limit it: where such groups are, the group's path, its version."""
    with suppress(OSError):
        for line in listed.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                yield GROUPS, path, 2
            elif controller in controllers.split(","):
                yield GROUPS / controller, path, 1


def _with_parents(root: Path, path: str) -> list[Path]:
    """Folders of a control group and of those that it is in."""
    group = root / path.lstrip("/")
    return [group, *(parent for parent in group.parents if parent.is_relative_to(root))]


def _rooms(root: Path, path: str, limit: str, usage: str, cached: str) -> Iterator[int]:
    """What a control group and those that it is in allow: their limits less what is in use and cannot be given back."""
    for folder in _with_parents(root, path):
        with suppress(OSError, ValueError):  # "max", or not shown to a container
            most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
            yield most - used + sum(_numbers(folder / "memory.stat", cached))


def _quotas(root: Path, path: str) -> Iterator[float]:
    """Processors whose time a control group and those that it is in may take."""
    for folder in _with_parents(root, path):
        with suppress(OSError, ValueError, ZeroDivisionError):  # "max 100000", or not shown to a container
            quota, period = map(int, (folder / "cpu.max").read_text().split())
            yield quota / period
        with suppress(OSError, ValueError, ZeroDivisionError):
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = (int((folder / name).read_text()) for name in names)
            if quota > 0:  # -1: no limit
                yield quota / period


def _numbers(file: Path, name: str) -> Iterator[int]:
    """The number behind a name in a file of lines."""
    with suppress(OSError):
        for line in file.read_text().splitlines():
            words = line.split()
            if words[:1] == [name] and words[1].isdigit():
                yield int(words[1])
