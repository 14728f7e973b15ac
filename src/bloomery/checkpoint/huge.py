"""Memory in large pages, for weights that are copied instead of mapped. Knows no tensor's meaning.

A processor looks up where each page lies, and of 4 KiB pages it can remember too few for the weights of a model.
"""

import math
import mmap
from pathlib import Path

import torch
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.progress import as_size

PAGE = 2**21
"""Bytes of a huge page, of x86 and of ARM with small pages of 4 KiB."""
ALIGNMENT = 64
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class HugePages:
    """Room for tensors, one behind the other, in pages that the system is asked to make large.

    Raises:
        UsageError: it makes none.
    """

    def __init__(self, size: int, setting: Path = SETTING) -> None:
        if not hasattr(mmap, "MADV_HUGEPAGE") or not setting.exists():
            raise UsageError("huge_pages is for Linux with transparent huge pages, which are not here: drop it")
        if "[never]" in setting.read_text():
            raise UsageError(f"huge_pages: this system makes none: write madvise into {setting}, or drop it")
        self._map = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory = torch.frombuffer(self._map, dtype=torch.uint8)
        begin = -memory.data_ptr() % PAGE
        self._map.madvise(mmap.MADV_HUGEPAGE, begin, size)
        self._memory, self._used = memory[begin : begin + size], 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros; the memory lives as long as any of them."""
        begin, end = self._used, self._used + math.prod(shape) * dtype.itemsize
        self._used = aligned(end)
        return self._memory[begin:end].view(dtype).view(shape)

    def __str__(self) -> str:
        """How much is in use, and how much of it lies in large pages."""
        return f"{as_size(self._used)}, {as_size(min(self._used, self._huge()))} of them in huge pages"

    def _huge(self) -> int:
        """Bytes of it in large pages, as the system counts them."""
        first, last = self._memory.data_ptr(), self._memory.data_ptr() + len(self._memory)
        inside, found = False, 0
        for line in Path("/proc/self/smaps").read_text().splitlines():
            words = line.split()
            if not words[0].endswith(":"):  # the addresses of the next area
                begin, end = (int(number, 16) for number in words[0].split("-"))
                inside = begin < last and end > first
            elif inside and words[0] == "AnonHugePages:":
                found += 1024 * int(words[1])
        return found


def aligned(size: int) -> int:
    """Bytes that a tensor of this size takes."""
    return -(-size // ALIGNMENT) * ALIGNMENT
