"""The tensors of a Hugging Face folder by our names and in our layout, one at a time. Knows no module.

Our names and shapes come from `model/layout.shapes`; how theirs become ours, from the folder's family.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from bloomery.checkpoint.files import WeightFile, open_file
from bloomery.checkpoint.folder import Folder
from bloomery.errors import CheckpointError

EMBEDDING, HEAD = "embed.tokens.weight", "head.weight"
Place = tuple[WeightFile, str]
"""A file, and the name under which a tensor lies there."""


class Tensors(Protocol):
    """A model's tensors, wherever they are kept: by our names, in our layout, in the dtype they are kept in."""

    def read(self, name: str) -> Tensor:
        """A tensor: a view of a mapped file where the bytes are already as we keep them.

        Raises:
            CheckpointError: it is not as the configuration asks for.
        """
        ...

    def release(self, name: str) -> None:
        """Forget what was mapped to read a tensor, which by now has been copied or keeps its own mapping alive."""
        ...


class FolderTensors:
    """`Tensors` of a Hugging Face folder.

    Args:
        shapes: our names, and tensors on `meta` of the shapes that the configuration asks for.

    Raises:
        CheckpointError: a tensor is missing, unknown or there twice, or a file cannot be read.
    """

    def __init__(self, folder: Folder, shapes: Mapping[str, Tensor]) -> None:
        self.folder = folder
        self.shapes = shapes
        self.sources = folder.family.sources(folder.config, shapes)
        self.places = _find(folder, [open_file(file) for file in folder.weights])
        self._check_names()

    def read(self, name: str) -> Tensor:
        source, config = self.sources[name], self.folder.config
        expected = [self.shapes[name]]
        # Shapes are checked before the reordering: a matrix that lies the other way round could have ours by chance.
        if source.reorder is not None:
            expected = source.reorder.to_theirs(self.shapes[name], config)
        parts = [_checked(*self.places[theirs], shape) for theirs, shape in zip(source.theirs, expected, strict=True)]
        tensor = parts[0] if source.reorder is None else source.reorder.to_ours(parts, config)
        if name == EMBEDDING and config.tied_head:
            self._check_tied_copy(tensor)
        return tensor

    def release(self, name: str) -> None:
        for theirs in self.sources[name].theirs:
            file, written = self.places[theirs]
            file.release(written)

    def _check_names(self) -> None:
        family = self.folder.family
        for ours, source in self.sources.items():
            for theirs in source.theirs:
                if theirs not in self.places:
                    raise CheckpointError(
                        f"{self.folder.path}: tensor '{theirs}' ({ours}) is in none of {_names(self.folder)}: "
                        "fetch the folder again"
                    )
        expected = {theirs for source in self.sources.values() for theirs in source.theirs}
        if self.folder.config.tied_head:
            expected.add(family.head)
        for name, (file, written) in self.places.items():
            if name not in expected and not family.is_ignored(name):
                raise CheckpointError(
                    f"{file.path}: tensor '{written}' is not one of a {family.name} of "
                    f"{self.folder.config.num_layers} layers: config and weights are of different models"
                )

    def _check_tied_copy(self, embedding: Tensor) -> None:
        """Some tools write a tied head twice. Two different ones would mean that one of them is ignored."""
        place = self.places.get(self.folder.family.head)
        if place is None:
            return
        head = _checked(*place, embedding)
        if not torch.equal(head.to(embedding.dtype), embedding):
            raise CheckpointError(
                f"{place[0].path}: tensor '{place[1]}' differs from the embedding although config.json ties them: "
                "set tie_word_embeddings to false"
            )


def _checked(file: WeightFile, name: str, expected: Tensor) -> Tensor:
    """A tensor, refused unless it is as it should be."""
    tensor = file.read(name)
    if tensor.shape != expected.shape:
        raise CheckpointError(
            f"{file.path}: tensor '{name}' has shape {list(tensor.shape)}, but config.json asks for "
            f"{list(expected.shape)}: config and weights are of different models"
        )
    if not tensor.is_floating_point():
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"{file.path}: tensor '{name}' is {dtype}: get the model in fp32, fp16 or bf16")
    return tensor


def _find(folder: Folder, files: list[WeightFile]) -> dict[str, Place]:
    """Their names without prefix -> where they are."""
    found: dict[str, Place] = {}
    for file in files:
        for theirs in file.names:
            name = theirs.removeprefix(folder.family.prefix)
            if name in found:
                first, other = found[name]
                raise CheckpointError(
                    f"{file.path}: tensor '{theirs}' is also '{other}' in {first.path.name}: fetch the folder again"
                )
            found[name] = (file, theirs)
    return found


def _names(folder: Folder) -> str:
    return ", ".join(file.name for file in folder.weights)
