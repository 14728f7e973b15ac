"""Tensors of a model folder -> a decoder, one tensor at a time, mapped instead of copied wherever the bytes agree.

Knows nothing of tokenizers and engines.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bloomery.checkpoint.folder import Folder
from bloomery.errors import CheckpointError
from bloomery.log import logger
from bloomery.model.decoder import Decoder

Read = Callable[[str], Tensor]


def load_decoder(folder: Folder, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Decoder:
    """Build the decoder on `meta` and hand it the folder's tensors.

    A tensor whose bytes are already as we keep them (same dtype, no reordering, on a CPU) is used where it is mapped:
    its pages are shared with every other process and count only once read. Any other is copied alone, so that memory
    never holds the file beside the model.

    Args:
        dtype: None keeps the checkpoint's own (fp16 becomes fp32 on a CPU, which has no fast fp16).

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape, or a file cannot be read.
    """
    device = torch.device(device)
    files = [_open_file(file) for file in folder.weights]
    where = _locate(folder, files)
    with torch.device("meta"):
        decoder = Decoder(folder.config)
    shapes = {name: parameter.shape for name, parameter in decoder.named_parameters()}
    if dtype is None:
        dtype = _natural_dtype(where["embed.tokens.weight"], device)
    for ours, source in folder.family.sources(folder.config).items():
        file, theirs = where[ours]
        tensor = file.read(theirs)
        if source.reorder is not None:
            # Of a tensor with fewer dimensions than it should have, the shape is reported below.
            with suppress(IndexError, RuntimeError):
                tensor = source.reorder.to_ours(tensor, folder.config)
        if tensor.shape != shapes[ours]:
            raise CheckpointError(
                f"{file.path}: tensor '{theirs}' has shape {list(tensor.shape)}, but config.json asks for "
                f"{list(shapes[ours])}: config and weights are of different models"
            )
        _assign(decoder, ours, tensor.to(device=device, dtype=dtype).contiguous())
        file.release(theirs)
    if folder.config.tied_head:
        _check_tied_copy(folder, files, decoder)
        decoder.head.weight = decoder.embed.tokens.weight
    return decoder.eval()


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
    beyond tensors."""

    def _names(self) -> list[str]:
        try:
            try:
                self.tensors = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                logger.info("%s is in a format older than torch 1.6: reading it whole", self.path)
                self.tensors = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a dozen kinds for a damaged file
            reason = str(error).split("\n")[0]
            raise CheckpointError(f"{self.path} cannot be read as weights ({reason}): fetch it again") from None
        return list(self.tensors)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]

    def release(self, name: str) -> None:
        del self.tensors[name]


def _open_file(path: Path) -> WeightFile:
    return PickledFile(path) if path.suffix == ".bin" else WeightFile(path)


def _locate(folder: Folder, files: list[WeightFile]) -> dict[str, tuple[WeightFile, str]]:
    """Our name -> the file and the name under which it lies there. Refuses what is missing and what is unknown."""
    family = folder.family
    found = {name.removeprefix(family.prefix): (file, name) for file in files for name in file.names}
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
    return {ours: found[source.theirs] for ours, source in sources.items()}


def _natural_dtype(place: tuple[WeightFile, str], device: torch.device) -> torch.dtype:
    dtype = place[0].read(place[1]).dtype
    if dtype == torch.float16 and device.type == "cpu":
        logger.info("the checkpoint is fp16, which CPUs compute slowly: running it as fp32")
        return torch.float32
    return dtype


def _assign(decoder: Decoder, name: str, tensor: Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(decoder.get_submodule(module), leaf, nn.Parameter(tensor, requires_grad=False))


def _check_tied_copy(folder: Folder, files: list[WeightFile], decoder: Decoder) -> None:
    """Some tools write a tied head twice. Two different ones would mean that one of them is ignored."""
    for file in files:
        if folder.family.head in file.names:
            head = file.read(folder.family.head)
            embedding = decoder.embed.tokens.weight
            if not torch.equal(head.to(device=embedding.device, dtype=embedding.dtype), embedding):
                raise CheckpointError(
                    f"{file.path}: '{folder.family.head}' differs from the embedding although config.json ties them: "
                    "set tie_word_embeddings to false"
                )
