"""Which device and dtype to run on, and what memory is left there. Knows no model."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from bloomery.errors import UsageError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of what mallopt sets, from glibc's malloc.h."""
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


def threads() -> int:
    """CPU threads that a run uses."""
    return torch.get_num_threads()


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
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                rooms += _rooms(Path("/sys/fs/cgroup"), path, "memory.max", "memory.current", "file")
            elif "memory" in controllers.split(","):
                limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
                rooms += _rooms(Path("/sys/fs/cgroup/memory"), path, limit, usage, "total_cache")
    return max(0, min(rooms)) if rooms else None


def _rooms(root: Path, path: str, limit: str, usage: str, cached: str) -> Iterator[int]:
    """What a control group and those that it is in allow: their limits less what is in use and cannot be given back."""
    group = root / path.lstrip("/")
    for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
        with suppress(OSError, ValueError):  # "max", or not shown to a container
            most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
            yield most - used + sum(_numbers(folder / "memory.stat", cached))


def _numbers(file: Path, name: str) -> Iterator[int]:
    """The number behind a name in a file of lines."""
    with suppress(OSError):
        for line in file.read_text().splitlines():
            words = line.split()
            if words[:1] == [name] and words[1].isdigit():
                yield int(words[1])
