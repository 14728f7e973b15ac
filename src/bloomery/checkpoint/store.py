"""The tensors of a store by our names, as any rank of any number of ranks wants them. Knows no family.

However a store was cut, a rank gets its own portion: a view of one mapped file where that has all of it, else the
pieces from several, put together. Packed weights are read as they were cut, for as many ranks and no other number.
"""

from collections.abc import Iterator
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from bloomery.checkpoint.files import WeightFile, open_file
from bloomery.checkpoint.folder import Folder
from bloomery.checkpoint.header import Kind, shown
from bloomery.checkpoint.precision import dtype_name
from bloomery.checkpoint.random import random_tensors
from bloomery.checkpoint.tensors import EMBEDDING, WEIGHT_DTYPES, FolderTensors, KnownTensors
from bloomery.checkpoint.write import ALIGNMENT, PADDING
from bloomery.errors import CheckpointError, UsageError
from bloomery.model.layout import Cut, check_tp, cut_of, shapes
from bloomery.quant.swap import weights

AGAIN = "convert or fetch the store again"
Files = dict[str, WeightFile]
"""Our names -> the file of one rank that holds it."""


class Piece(NamedTuple):
    """Consecutive indices of a tensor that lie in one rank's file: `length` of them, from `begin` on there."""

    rank: int
    begin: int
    length: int


def open_tensors(folder: Folder) -> KnownTensors:
    """All tensors of a Hugging Face folder or a store, or those of a random model.

    Raises:
        CheckpointError: one is missing, unknown, there twice, of another shape or dtype, or a file cannot be read.
    """
    if folder.seeded is not None:
        return random_tensors(folder)
    return FolderTensors(folder, shapes(folder.config)) if folder.manifest is None else StoreTensors(folder)


def open_portions(folder: Folder) -> tuple[KnownTensors, ...]:
    """All tensors as they are kept: whole, or where they are packed and cut, each rank's portion. Raises as
    `open_tensors`."""
    if folder.manifest is None or folder.manifest.scheme is None:
        return (open_tensors(folder),)
    first = StoreTensors(folder, folder.manifest.tp)
    return tuple(first.of_rank(rank) for rank in range(folder.manifest.tp))


class StoreTensors:
    """`KnownTensors` of a store.

    Args:
        tp, rank: which portion is wanted, whatever the store was cut for; 1 and 0 are all of it.

    Raises:
        CheckpointError: a tensor is missing, unknown, there twice, of another shape or dtype, or a file cannot be read.
        UsageError: the model cannot be cut into so many portions, or its weights are packed and cut for another number.
    """

    def __init__(self, folder: Folder, tp: int = 1, rank: int = 0) -> None:
        if folder.manifest is None:
            raise ValueError(f"{folder.path} is no store")
        check_tp(folder.config, tp)
        self.folder, self.tp, self.rank = folder, tp, rank
        self.stored_tp = folder.manifest.tp
        try:
            check_tp(folder.config, self.stored_tp)
        except UsageError as error:
            raise CheckpointError(f"{folder.path} is damaged ({error}): {AGAIN}") from None
        self.scheme = folder.manifest.scheme
        self.weights = weights(folder.config, self.scheme)
        self.files = [self._open(rank, names) for rank, names in enumerate(folder.manifest.weights)]
        self._check_dtypes()
        if self.scheme is not None and tp != self.stored_tp:
            raise UsageError(
                f"{folder.path} is a store in {self.scheme.name} that was cut for tp {self.stored_tp}, and tp {tp} "
                f"cannot read it: convert the original, {folder.manifest.source.name}, with --tp {tp}"
            )

    def of_rank(self, rank: int) -> "StoreTensors":
        """Another rank's portion, from the same files, which are open."""
        other = copy(self)
        other.rank = rank
        return other

    def read(self, name: str) -> Tensor:
        cut = cut_of(name, self.folder.config, self.tp, self.rank)
        if cut is None or self.tp == self.stored_tp:
            return self._stored(name, self._nearest())
        pieces = list(self._pieces(name, cut))
        if len(pieces) == 1:
            return self._view(name, cut, pieces[0])
        dtype, shape = self.kind(name)
        whole, place = torch.empty(shape, dtype=dtype), 0
        for piece in pieces:
            whole.narrow(cut.dim, place, piece.length).copy_(self._view(name, cut, piece))
            place += piece.length
            self.files[piece.rank][name].release(name)  # the copies of all would else be in memory with the whole
        return whole

    def release(self, name: str) -> None:
        for files in self.files:
            files[name].release(name)

    def kind(self, name: str) -> Kind:
        dtype = self.files[0][name].kind(name).dtype
        cut = cut_of(name, self.folder.config, self.tp, self.rank)
        return Kind(dtype, self.weights[name].kept(cut))

    def _view(self, name: str, cut: Cut, piece: Piece) -> Tensor:
        return self._stored(name, piece.rank).narrow(cut.dim, piece.begin, piece.length)

    def _stored(self, name: str, rank: int) -> Tensor:
        tensor = self.files[rank][name].read(name)
        # What packed bytes stand for is read as wider numbers, which must begin where their size has them begin.
        misplaced = self.weights[name].scheme is not None and tensor.data_ptr() % ALIGNMENT
        return tensor.clone() if misplaced else tensor

    def _nearest(self) -> int:
        """The stored rank whose files this rank reads anyway, for what all of them have whole."""
        return self.rank * self.stored_tp // self.tp

    def _pieces(self, name: str, cut: Cut) -> Iterator[Piece]:
        """Where the wanted indices lie, in order, as few pieces as possible."""
        last: Piece | None = None
        for wanted in cut.ranges:
            index = wanted.start
            while index < wanted.stop:
                piece = self._piece(name, index, wanted.stop, last)
                index += piece.length
                if last is not None and last.rank == piece.rank and last.begin + last.length == piece.begin:
                    last = Piece(last.rank, last.begin, last.length + piece.length)
                    continue
                if last is not None:
                    yield last
                last = piece
        yield last or Piece(self._nearest(), 0, 0)

    def _piece(self, name: str, index: int, stop: int, last: Piece | None) -> Piece:
        """From `index` on, as much as one rank has; what several have is taken where the piece before it ends."""
        found = []
        for rank in range(self.stored_tp):
            stored = cut_of(name, self.folder.config, self.stored_tp, rank)
            begin = 0
            for part in stored.ranges if stored is not None else ():
                if index in part:
                    found.append(Piece(rank, begin + index - part.start, min(stop, part.stop) - index))
                begin += len(part)
        end = (last.rank, last.begin + last.length) if last is not None else None
        return next((piece for piece in found if (piece.rank, piece.begin) == end), found[0])

    def _open(self, rank: int, names: tuple[str, ...]) -> Files:
        """A rank's files, with all the tensors that it must have and no other."""
        found: Files = {}
        for file in (open_file(self.folder.path / name) for name in names):
            for name in file.names:
                if name.startswith(PADDING):
                    continue
                if name in found:
                    raise CheckpointError(
                        f"{file.path}: tensor {shown(name)} is also in {found[name].path.name}: {AGAIN}"
                    )
                self._check(file, name, rank)
                found[name] = file
        missing = next((name for name in self.weights if name not in found), None)
        if missing is not None:
            raise CheckpointError(f"{self.folder.path}: tensor '{missing}' is in none of {', '.join(names)}: {AGAIN}")
        return found

    def _check(self, file: WeightFile, name: str, rank: int) -> None:
        if name not in self.weights:
            raise CheckpointError(f"{file.path}: tensor {shown(name)} is none of this model's: {AGAIN}")
        weight = self.weights[name]
        dtype, shape = file.kind(name)
        if (dtype == torch.uint8) != (weight.scheme is not None) or dtype not in (torch.uint8, *WEIGHT_DTYPES):
            by = f", not packed in {weight.scheme.name} as its manifest says" if weight.scheme is not None else ""
            raise CheckpointError(f"{file.path}: tensor '{name}' is {dtype_name(dtype)}{by}: {AGAIN}")
        expected = weight.kept(cut_of(name, self.folder.config, self.stored_tp, rank))
        if shape != expected:
            raise CheckpointError(
                f"{file.path}: tensor '{name}' has shape {list(shape)}, not {list(expected)}: {AGAIN}"
            )

    def _check_dtypes(self) -> None:
        assert self.folder.manifest is not None
        said, is_ = self.folder.manifest.dtype, dtype_name(self.files[0][EMBEDDING].kind(EMBEDDING).dtype)
        if said != is_:
            raise CheckpointError(f"{self.folder.path}: its manifest says {said}, but weights are {is_}: {AGAIN}")
        for name in self.weights:
            dtypes = {dtype_name(files[name].kind(name).dtype) for files in self.files}
            if len(dtypes) > 1:
                several = " and ".join(sorted(dtypes))
                raise CheckpointError(f"{self.folder.path}: tensor '{name}' is {several} on different ranks: {AGAIN}")
