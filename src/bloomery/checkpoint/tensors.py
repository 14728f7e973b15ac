"""The tensors of a Hugging Face folder by our names and in our layout, one at a time. Knows no module.

Our names and shapes come from `model/layout.shapes`; how theirs become ours, from the folder's family.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from bloomery.checkpoint.files import WeightFile, open_file
from bloomery.checkpoint.folder import Folder
from bloomery.checkpoint.header import Kind, shown
from bloomery.errors import CheckpointError

EMBEDDING, HEAD = "embed.tokens.weight", "head.weight"
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
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


class KnownTensors(Tensors, Protocol):
    """`Tensors` that are known before they are read."""

    def kind(self, name: str) -> Kind:
        """The dtype in which a tensor is kept, and its shape in our layout.

        Raises:
            CheckpointError: it is made of parts of several dtypes.
        """
        ...


class FolderTensors:
    """`Tensors` of a Hugging Face folder.

    Args:
        shapes: our names, and tensors on `meta` of the shapes that the configuration asks for.

    Raises:
        CheckpointError: a tensor is missing, unknown, there twice, of another shape or dtype, or a file cannot be read.
            All of it is known before a byte of a mapped tensor is read.
    """

    def __init__(self, folder: Folder, shapes: Mapping[str, Tensor]) -> None:
        self.folder = folder
        self.shapes = shapes
        self.sources = folder.family.sources(folder.config, shapes)
        self.places = _find(folder, [open_file(file) for file in folder.weights])
        self._check_names()
        self._check_index()
        self._check_kinds()

    def read(self, name: str) -> Tensor:
        source, config = self.sources[name], self.folder.config
        parts = [self._read(theirs) for theirs in source.theirs]
        tensor = parts[0] if source.reorder is None else source.reorder.to_ours(parts, config)
        if name == EMBEDDING and config.tied_head:
            self._check_tied_copy(tensor)
        return tensor

    def release(self, name: str) -> None:
        for theirs in self.sources[name].theirs:
            file, written = self.places[theirs]
            file.release(written)

    def kind(self, name: str) -> Kind:
        dtypes = {file.kind(written).dtype for file, written in self._places(name)}
        if len(dtypes) > 1:
            kinds = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            raise CheckpointError(f"{self.folder.path}: {name} is made of {kinds}: get the model in one of them")
        return Kind(dtypes.pop(), tuple(self.shapes[name].shape))

    def _places(self, name: str) -> list[Place]:
        return [self.places[theirs] for theirs in self.sources[name].theirs]

    def _read(self, theirs: str) -> Tensor:
        file, written = self.places[theirs]
        return file.read(written)

    def _check_kinds(self) -> None:
        """Shapes are compared before the reordering: a matrix that lies the other way round could have ours by
        chance."""
        for ours, source in self.sources.items():
            expected = [self.shapes[ours]]
            if source.reorder is not None:
                expected = source.reorder.to_theirs(self.shapes[ours], self.folder.config)
            for theirs, tensor in zip(source.theirs, expected, strict=True):
                _check_kind(*self.places[theirs], tensor)
        copy = self.places.get(self.folder.family.head)
        if self.folder.config.tied_head and copy is not None:
            _check_kind(*copy, self.shapes[EMBEDDING])

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
                    f"{file.path}: tensor {shown(written)} is not one of a {family.name} of "
                    f"{self.folder.config.num_layers} layers: config and weights are of different models"
                )

    def _check_index(self) -> None:
        """Where there is an index, it and the files are of one version: a tensor is where it says, and nowhere else."""
        prefix, index = self.folder.family.prefix, self.folder.weight_map
        named = {theirs.removeprefix(prefix): file for theirs, file in index.items()}
        known = {theirs for source in self.sources.values() for theirs in source.theirs}
        for name in known if index else ():
            file, written = self.places[name]
            if name not in named or self.folder.path / named[name] != file.path:
                raise CheckpointError(
                    f"{file.path}: tensor {shown(written)} is here, but the index has it in "
                    f"{ascii(named.get(name, 'no file'))[:200]}: fetch the folder again"
                )
        for theirs, where in index.items():
            name = theirs.removeprefix(prefix)
            if name not in self.places and not self.folder.family.is_ignored(name):
                raise CheckpointError(
                    f"{self.folder.path}: tensor {shown(theirs)} is not in {where}, but the index has it there: "
                    "fetch the folder again"
                )

    def _check_tied_copy(self, embedding: Tensor) -> None:
        """Some tools write a tied head twice. Two different ones would mean that one of them is ignored."""
        place = self.places.get(self.folder.family.head)
        if place is None:
            return
        head = self._read(self.folder.family.head)
        same = torch.equal(head.to(embedding.dtype), embedding)
        place[0].release(place[1])
        if not same:
            raise CheckpointError(
                f"{place[0].path}: tensor '{place[1]}' differs from the embedding although config.json ties them: "
                "set tie_word_embeddings to false"
            )


def _check_kind(file: WeightFile, name: str, expected: Tensor) -> None:
    kind = file.kind(name)
    if kind.shape != tuple(expected.shape):
        raise CheckpointError(
            f"{file.path}: tensor '{name}' has shape {list(kind.shape)}, but config.json asks for "
            f"{list(expected.shape)}: config and weights are of different models"
        )
    if kind.dtype not in WEIGHT_DTYPES:
        dtype = str(kind.dtype).removeprefix("torch.")
        raise CheckpointError(f"{file.path}: tensor '{name}' is {dtype}: get the model in fp32, fp16 or bf16")


def _find(folder: Folder, files: list[WeightFile]) -> dict[str, Place]:
    """Their names without prefix -> where they are."""
    found: dict[str, Place] = {}
    for file in files:
        for theirs in file.names:
            name = theirs.removeprefix(folder.family.prefix)
            if name in found:
                first, other = found[name]
                raise CheckpointError(
                    f"{file.path}: tensor {shown(theirs)} is also {shown(other)} in {first.path.name}: "
                    "fetch the folder again"
                )
            found[name] = (file, theirs)
    return found


def _names(folder: Folder) -> str:
    return ", ".join(file.name for file in folder.weights)
