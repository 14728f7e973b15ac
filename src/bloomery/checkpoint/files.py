"""One file of weights: names, and tensors by name, mapped where that is possible. Knows no family.

Nothing but tensors is ever taken from a file.
"""

import ctypes
import mmap
import sys
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bloomery.errors import CheckpointError
from bloomery.log import logger


class WeightFile:
    """One weight file: names, and tensors by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = self._names()

    def _names(self) -> list[str]:
        try:
            with safe_open(self.path, framework="pt") as file:
                return list(file.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path} is damaged ({error}): fetch it again") from None

    def read(self, name: str) -> Tensor:
        """A view of the mapped file. A mapping of its own: once the view is gone, so are its pages."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(name)

    def release(self, name: str) -> None:
        """Forget what is not needed again."""


class PickledFile(WeightFile):
    """An old `.bin` checkpoint: mapped when it is a zip file, read whole when it is older still. Never unpickled
    beyond tensors.
    """

    mapped = True

    def _names(self) -> list[str]:
        try:
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
        self.tensors: dict[str, Tensor] = tensors
        return list(tensors)

    def _load(self) -> Any:
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
        logger.info("%s is in a format older than torch 1.6: reading it whole", self.path)
        self.mapped = False
        return torch.load(self.path, map_location="cpu", weights_only=True)

    def read(self, name: str) -> Tensor:
        return self.tensors[name].detach()

    def release(self, name: str) -> None:
        tensor = self.tensors.pop(name)
        if self.mapped:
            _drop_pages(tensor)


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
    return PickledFile(path) if path.suffix == ".bin" else WeightFile(path)
