"""Memory that is left is the machine's, or what a control group allows, whichever is less."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bloomery.devices import _rooms, memory_left

V2 = ("memory.max", "memory.current", "file")


def group(folder: Path, limit: str, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nfile {cached}\nfile_mapped 7\n")


def test_group_leaves_its_limit_less_what_cannot_be_given_back(tmp_path: Path) -> None:
    group(tmp_path / "a", "1000", 300, 100)
    assert list(_rooms(tmp_path, "/a", *V2)) == [800]


def test_groups_that_a_group_is_in_count_as_well(tmp_path: Path) -> None:
    group(tmp_path / "a" / "b", "max", 300, 100)
    group(tmp_path / "a", "500", 450, 0)
    group(tmp_path, "2000", 450, 0)
    assert sorted(_rooms(tmp_path, "/a/b", *V2)) == [50, 1550]


def test_group_that_is_not_shown_allows_all(tmp_path: Path) -> None:
    assert list(_rooms(tmp_path, "/elsewhere", *V2)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_memory_left_here_is_some_and_not_more_than_there_is() -> None:
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    left = memory_left(torch.device("cpu"))
    assert left is not None
    assert 0 < left <= 1024 * int(total.split()[1])


TAKE_TWICE = """
import resource, sys, torch
from bloomery.devices import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    raise SystemExit("not here")
for _ in range(20):  # a block that was freed is at first too short for the next one and its alignment
    torch.ones(16 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(16 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_memory_that_is_kept_is_taken_again_without_new_pages() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", TAKE_TWICE, how], check=True, capture_output=True, text=True)
        return int(done.stdout)

    pages = 4 * 16 * 2**20 // resource.getpagesize()
    assert faults("given back") > pages // 2
    assert faults("kept") < pages // 100


HOLD = """
import ctypes
from bloomery.devices import keep_freed_memory
assert keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype = library.sbrk.restype = ctypes.c_void_p
library.malloc.argtypes, library.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
before = library.sbrk(0)
library.free(library.malloc(3 * 2**30))
print(library.sbrk(0) - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_more_than_two_gigabytes_are_kept_too() -> None:
    """Of addresses: no page of them is touched."""
    done = subprocess.run([sys.executable, "-c", HOLD], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 2.9 * 2**30
