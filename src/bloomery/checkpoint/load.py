"""Tensors of a model folder -> a decoder, one tensor at a time, mapped instead of copied wherever the bytes agree.

Knows nothing of tokenizers and engines.
"""

import ctypes
import mmap
import sys
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bloomery.checkpoint.folder import Folder
from bloomery.errors import CheckpointError
from bloomery.families.rules import Source
from bloomery.log import logger
from bloomery.model.decoder import Decoder


def load_decoder(folder: Folder, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Decoder:
    """Build the decoder on `meta` and hand it the folder's tensors.

    A tensor whose bytes are already as we keep them (same dtype, no reordering, on a CPU) is used where it is mapped:
    its pages are shared with every other process and count only once read. Any other is copied alone, so that memory
    never holds the file beside the model.

    Args:
        dtype: None keeps the checkpoint's own (fp16 becomes fp32 on a CPU, which has no fast fp16).

    Raises:
        CheckpointError: a tensor is missing, unknown, there twice or of another shape, or a file cannot be read.
    """
    device = torch.device(device)
    files = [_open_file(file) for file in folder.weights]
    where = _locate(folder, files)
    with torch.device("meta"):
        decoder = Decoder(folder.config)
    parameters = dict(decoder.named_parameters())
    if dtype is None:
        dtype = _natural_dtype(where["embed.tokens.weight"], device)
    for ours, source in folder.family.sources(folder.config).items():
        file, theirs = where[ours]
        tensor = _read(file, theirs, source, parameters[ours], folder)
        # One copy at most, also of a transposed view of another dtype.
        tensor = tensor.to(device=device, dtype=dtype, memory_format=torch.contiguous_format).contiguous()
        _assign(decoder, ours, tensor)
        file.release(theirs)
    if folder.config.tied_head:
        if "head.weight" in where:
            _check_tied_copy(*where["head.weight"], decoder)
        decoder.head.weight = decoder.embed.tokens.weight
    return decoder.eval()


def _read(file: "WeightFile", theirs: str, source: Source, parameter: Tensor, folder: Folder) -> Tensor:
    """A tensor in our order, refused unless it lies in the file as it should."""
    tensor, reorder = file.read(theirs), source.reorder
    # The shape is checked before the reordering: a matrix that lies the other way round could have ours by chance.
    expected = parameter if reorder is None else reorder.to_theirs(parameter, folder.config)
    if tensor.shape != expected.shape:
        raise CheckpointError(
            f"{file.path}: tensor '{theirs}' has shape {list(tensor.shape)}, but config.json asks for "
            f"{list(expected.shape)}: config and weights are of different models"
        )
    if not tensor.is_floating_point():
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"{file.path}: tensor '{theirs}' is {dtype}: get the model in fp32, fp16 or bf16")
    return tensor if reorder is None else reorder.to_ours(tensor, folder.config)


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


def _open_file(path: Path) -> WeightFile:
    return PickledFile(path) if path.suffix == ".bin" else WeightFile(path)


def _locate(folder: Folder, files: list[WeightFile]) -> dict[str, tuple[WeightFile, str]]:
    """Our name -> the file and the name under which it lies there, also a head's that is tied and yet written.

    Refuses what is missing, unknown or there twice.
    """
    family = folder.family
    found: dict[str, tuple[WeightFile, str]] = {}
    for file in files:
        for theirs in file.names:
            name = theirs.removeprefix(family.prefix)
            if name in found:
                first, other = found[name]
                raise CheckpointError(
                    f"{file.path}: tensor '{theirs}' is also '{other}' in {first.path.name}: fetch the folder again"
                )
            found[name] = (file, theirs)
    sources = family.sources(folder.config)
    for ours, source in sources.items():
        if source.theirs not in found:
            names = ", ".join(file.path.name for file in files)
            raise CheckpointError(
                f"{folder.path}: tensor '{source.theirs}' ({ours}) is in none of {names}: fetch the folder again"
            )
    expected = {source.theirs for source in sources.values()} | {family.head}
    for name, (file, theirs) in found.items():
        if name not in expected and not family.is_ignored(name):
            raise CheckpointError(
                f"{file.path}: tensor '{theirs}' is not one of a {family.name} of {folder.config.num_layers} layers: "
                "config and weights are of different models"
            )
    where = {ours: found[source.theirs] for ours, source in sources.items()}
    return where | {"head.weight": found[family.head]} if family.head in found else where


def _natural_dtype(place: tuple[WeightFile, str], device: torch.device) -> torch.dtype:
    dtype = place[0].read(place[1]).dtype
    if dtype == torch.float16 and device.type == "cpu":
        logger.info("the checkpoint is fp16, which CPUs compute slowly: running it as fp32")
        return torch.float32
    return dtype


def _assign(decoder: Decoder, name: str, tensor: Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(decoder.get_submodule(module), leaf, nn.Parameter(tensor, requires_grad=False))


def _check_tied_copy(file: WeightFile, theirs: str, decoder: Decoder) -> None:
    """Some tools write a tied head twice. Two different ones would mean that one of them is ignored."""
    embedding = decoder.embed.tokens.weight
    head = file.read(theirs)
    if not torch.equal(head.to(device=embedding.device, dtype=embedding.dtype), embedding):
        raise CheckpointError(
            f"{file.path}: tensor '{theirs}' differs from the embedding although config.json ties them: "
            "set tie_word_embeddings to false"
        )
