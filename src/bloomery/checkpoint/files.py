"""One file of weights: names, and tensors by name, mapped where that is possible. Knows no family.

Nothing but tensors is ever taken from a file.
"""

import ctypes
import mmap
import os
import sys
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import Tensor

from bloomery.checkpoint.header import Kind, read_header, shown
from bloomery.disk.paths import open_regular
from bloomery.errors import CheckpointError
from bloomery.log import logger

NO_RESERVE = 0x4000
"""MAP_NORESERVE of Linux, which `mmap` has no word for before Python 3.13."""


class WeightFile(Protocol):
    """One weight file: names, what they stand for, and tensors by name."""

    path: Path
    names: list[str]

    def kind(self, name: str) -> Kind:
        """A tensor's dtype and shape, known before a byte of it is read."""
        ...

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU: a view of the mapped file where that is possible. What is written into it stays ours."""
        ...

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor took, for one that has been copied or is not needed now.

        A view of it keeps working: its numbers come from the file again. What was written into it is lost.
        """
        ...


class MappedFile:
    """A safetensors file: checked whole, mapped once.

    Raises:
        CheckpointError: it is damaged, or is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                header = read_header(path, file, size)
                self._map = _map(file.fileno(), size)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror or error}): check it") from None
        self.metadata = header.metadata
        self._entries = header.entries
        self.names = list(header.entries)
        if any(entry.begin % entry.kind.dtype.itemsize for entry in header.entries.values()):
            logger.info("%s: its tensors are not aligned and are copied, not mapped", path)

    def kind(self, name: str) -> Kind:
        return self._entries[name].kind

    def read(self, name: str) -> Tensor:
        (dtype, shape), begin, end = self._entries[name]
        if begin == end:
            return torch.empty(shape, dtype=dtype)
        numbers = torch.frombuffer(self._map, dtype=torch.uint8, count=end - begin, offset=begin)
        if begin % dtype.itemsize:  # code for vectors may rely on numbers that begin where their size has them begin
            numbers = numbers.clone()
        return numbers.view(dtype).view(shape)

    def release(self, name: str) -> None:
        _, begin, end = self._entries[name]
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = end // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and sys.platform == "linux":
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


def _map(descriptor: int, size: int) -> mmap.mmap:
    """A whole file, private: torch must be able to write into its tensors, and the file must not see it."""
    if sys.platform != "linux":
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    # Without the flag a file larger than the memory is refused, as if all of it were to be written to.
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    mapped = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE | NO_RESERVE, prot=protection)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # What is read from the disk from now on comes in large pages where the file system has them: weights then take
        # a step less time (docs/log.md). What is in memory already stays as it is.
        with suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


class PickledFile:
    """An old `.bin` checkpoint: mapped when it is a zip file, read whole when it is older still. Never unpickled
    beyond tensors.

    Raises:
        CheckpointError: it is damaged, or holds something else than named tensors, such as code, which is not run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mapped = True
        self._tensors = self._checked()
        self.names = list(self._tensors)
        self._kinds = {name: Kind(tensor.dtype, tuple(tensor.shape)) for name, tensor in self._tensors.items()}

    def kind(self, name: str) -> Kind:
        return self._kinds[name]

    def read(self, name: str) -> Tensor:
        if name not in self._tensors:
            self._tensors = self._checked()
        return self._tensors[name].detach()

    def release(self, name: str) -> None:
        if self.mapped:
            _drop_pages(self._tensors[name])
        else:
            del self._tensors[name]

    def _checked(self) -> dict[str, Tensor]:
        try:
            open_regular(self.path).close()
            tensors = self._load()
        except UnpicklingError:  # torch's own words explain at length how to run the code
            raise CheckpointError(
                f"{self.path} holds something else than tensors, maybe harmful code, and is not read: "
                "fetch it again, best as safetensors"
            ) from None
        except Exception as error:  # torch raises a dozen kinds for a damaged file
            reason = str(error).split("\n")[0] or "it ends too early"
            raise CheckpointError(f"{self.path} cannot be read as weights ({reason}): fetch it again") from None
        named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
        if not named or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise CheckpointError(f"{self.path} holds something else than named tensors: fetch it as safetensors")
        for name, tensor in tensors.items():
            if not _has_its_numbers(tensor):
                raise CheckpointError(
                    f"{self.path}: tensor {shown(name)} does not hold a number for each of its places: "
                    "fetch it as safetensors"
                )
        return tensors

    def _load(self) -> Any:
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
        logger.info("%s is in a format older than torch 1.6: reading it whole", self.path)
        self.mapped = False
        return torch.load(self.path, map_location="cpu", weights_only=True)


def _has_its_numbers(tensor: Tensor) -> bool:
    """Not so of tensors without storage, and of those that are large by repeating a few numbers."""
    plain = tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.is_quantized
    return plain and tensor.nbytes <= tensor.untyped_storage().nbytes()


def _drop_pages(tensor: Tensor) -> None:
    """Take the pages of a mapped tensor out of our memory: one mapping serves the whole file, so they would count
    until the model goes. Whoever reads them again gets them from the file again.
    """
    if sys.platform == "linux":
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            libc = ctypes.CDLL(None)
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def open_file(path: Path) -> WeightFile:
    """A weight file of either kind.

    Raises:
        CheckpointError: it is damaged, or holds something else than tensors.
    """
    return PickledFile(path) if path.suffix == ".bin" else MappedFile(path)
