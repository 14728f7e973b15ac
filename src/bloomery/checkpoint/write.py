"""Safetensors files, written from front to back with their hashes, a piece at a time. Knows no model.

All sizes are known beforehand, so that the header is written first and no byte twice.
"""

import ctypes
import hashlib
import json
import mmap
import os
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bloomery.checkpoint.header import DTYPES, LENGTH, Kind
from bloomery.checkpoint.precision import pieces, refuse_overflow
from bloomery.disk.paths import open_regular
from bloomery.disk.place import Resumable
from bloomery.disk.small import as_json

ALIGNMENT = 64
"""Bytes: a cache line, and the widest register. Where a tensor begins in a file of a store, and thereby in memory."""
PADDING = "padding."
"""Begins the names of entries that only fill up: the format allows no byte that belongs to no tensor."""
READ_AT_ONCE = 8 * 2**20
READ_LATER = 4
"""Pieces that may be written before they are read back."""


class Written(NamedTuple):
    """What a file is known by."""

    size: int
    sha256: str


class Slot(NamedTuple):
    """Where a tensor will lie: bytes from the end of the header."""

    name: str
    kind: Kind
    begin: int
    end: int


class Layout(NamedTuple):
    """A file before it is written: all that stands before the tensors, and the tensors in order."""

    head: bytes
    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        return len(self.head) + (self.slots[-1].end if self.slots else 0)


def lay_out(tensors: Iterable[tuple[str, Kind]], alignment: int = 1) -> Layout:
    """Place tensors in a file one after the other, each beginning at a multiple of `alignment` bytes of the file."""
    slots: list[Slot] = []
    end = 0
    for name, kind in tensors:
        gap = -end % alignment
        if gap:
            slots.append(Slot(f"{PADDING}{len(slots)}", Kind(torch.uint8, (gap,)), end, end + gap))
            end += gap
        size = torch.Size(kind.shape).numel() * kind.dtype.itemsize
        slots.append(Slot(name, kind, end, end + size))
        end += size
    words = {dtype: word for word, dtype in DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for slot in slots:
        offsets = [slot.begin, slot.end]
        entries[slot.name] = {"dtype": words[slot.kind.dtype], "shape": slot.kind.shape, "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH + len(text)) % max(alignment, LENGTH))
    return Layout(len(text).to_bytes(LENGTH, "little") + text, tuple(slots))


class ReadingBack:
    """Reads back what is written, while more is, and hashes it: in a thread of its own, as it takes as long as writing
    and needs no interpreter. What it reads comes from wherever the system has it, so mostly from memory."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        self._found = bytearray()

    def __enter__(self) -> "ReadingBack":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, file: FileIO, piece: memoryview, digest: Any) -> None:
        """Read the next bytes of a file, some time soon; the piece, which they must equal, must not change until then.

        Raises:
            Resumable: some that were submitted before differ.
        """
        self._waiting.append(self._pool.submit(self._compare, file, piece, digest))
        if len(self._waiting) > READ_LATER:
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Until all has been read. Raises as `submit`."""
        while self._waiting:
            self._waiting.popleft().result()

    def _compare(self, file: FileIO, piece: memoryview, digest: Any) -> None:
        # Two memoryviews would be compared number by number; fresh memory costs as much as reading into it.
        if len(self._found) != len(piece):
            self._found = bytearray(len(piece))
        if file.readinto(self._found) != len(piece) or self._found != piece:
            raise Resumable(f"{file.name} is not read back as it was written: check the disk, then run it again")
        digest.update(self._found)


class FileWriter:
    """One file that is being written, its tensors in the order of its layout. Replaces a file of the same name.

    Args:
        reading: None where nobody wants it read back, nor the hash.

    Raises:
        OSError: the disk does not take it.
    """

    def __init__(self, path: Path, layout: Layout, reading: ReadingBack | None) -> None:
        self.path, self.layout, self._reading = path, layout, reading
        self._digest = hashlib.sha256()
        self._slots = deque(layout.slots)
        self._begun = 0  # bytes that the disk has been told to write
        # A process that is being killed may hold the old file: it writes into one that has no name any more.
        path.unlink(missing_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._again = path.open("rb", buffering=0) if reading is not None else None
        self._size = 0
        self._put(memoryview(layout.head))

    def __enter__(self) -> "FileWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._file)
        if self._again is not None:
            self._again.close()

    def write(self, name: str, tensor: Tensor, what: str, whole: Tensor | None = None) -> None:
        """The next tensor, from any device and in any order of its numbers, in the dtype of its place.

        Args:
            what, whole: as for `refuse_overflow`.

        Raises:
            CheckpointError: a number is too large for the dtype.
        """
        slot = self._slots.popleft()
        while slot.name.startswith(PADDING):
            self._put(memoryview(bytes(slot.end - slot.begin)))
            slot = self._slots.popleft()
        if slot.name != name or slot.kind.shape != tuple(tensor.shape):
            raise ValueError(f"{name} {list(tensor.shape)} is written in place of {slot}")
        for piece in pieces(tensor.detach()):
            # One copy at most, also of a transposed piece of another dtype.
            numbers = piece.to(device="cpu", dtype=slot.kind.dtype, memory_format=torch.contiguous_format).contiguous()
            refuse_overflow(piece, numbers, what, whole if whole is not None else tensor)
            content = numbers.view(-1).view(torch.uint8)
            if len(content):
                # Of a map, so that pages are here when `write` wants them: it copes badly with those that are not, and
                # takes twice as long.
                content[:: mmap.PAGESIZE].max()
            self._put(content.numpy().data)

    def finish(self) -> Written:
        """Until the disk has all of it. The hash is empty where nobody wanted one.

        Raises:
            Resumable: what is read back differs.
        """
        if self._slots or self._size != self.layout.size:
            raise ValueError(f"{self.path} lacks {[slot.name for slot in self._slots]}")
        if self._reading is not None:
            self._reading.finish()
        os.fsync(self._file)
        return Written(self._size, self._digest.hexdigest() if self._reading is not None else "")

    def _put(self, piece: memoryview) -> None:
        left = piece
        while left:
            left = left[os.write(self._file, left) :]
        _begin_writing(self._file, self._size, len(piece))
        self._size += len(piece)
        if self._reading is not None and self._again is not None:
            self._reading.submit(self._again, piece, self._digest)


def _begin_writing(file: int, begin: int, count: int) -> None:
    """Have the disk begin with these bytes now, instead of when memory is full of them or `fsync` asks for all."""
    call = _sync_file_range()
    if call is not None and count:
        call(file, ctypes.c_int64(begin), ctypes.c_int64(count), 2)  # SYNC_FILE_RANGE_WRITE


@cache
def _sync_file_range() -> Any:
    if sys.platform != "linux":
        return None
    with suppress(AttributeError):
        return ctypes.CDLL(None).sync_file_range
    return None


def write_bytes(path: Path, content: bytes) -> Written:
    """A small file, which the disk has when this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return Written(len(content), hashlib.sha256(content).hexdigest())


def write_json(path: Path, value: Mapping[str, Any]) -> Written:
    return write_bytes(path, as_json(value))


def read_back(path: Path) -> Written:
    """What a file is known by, as it is read now.

    The system is asked to forget what it holds of the file in memory, so that the disk is asked, where that can be.

    Raises:
        OSError: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        piece = memoryview(bytearray(READ_AT_ONCE))
        while count := file.readinto(piece):  # type: ignore[attr-defined]
            digest.update(piece[:count])
            size += count
    return Written(size, digest.hexdigest())
