"""A store's files before they are written: which tensors, in which order, of which ranks. Reads and writes nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from bloomery.checkpoint.header import Kind
from bloomery.checkpoint.write import ALIGNMENT, Layout, lay_out
from bloomery.model.config import DecoderConfig
from bloomery.model.layout import check_tp, cut_of, shapes


class Group(NamedTuple):
    """Tensors that are neighbours in a store: one file for each rank, written at once."""

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]  # whole, in the store's dtype
    files: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A store's files before they are written."""

    config: DecoderConfig
    tp: int
    groups: tuple[Group, ...]

    def layouts(self, group: Group) -> list[Layout]:
        """Each rank's file."""
        tensors = list(zip(group.names, group.kinds, strict=True))
        return [
            lay_out(((name, self._cut(name, kind, rank)) for name, kind in tensors), ALIGNMENT)
            for rank in range(self.tp)
        ]

    def size(self, group: Group) -> int:
        return sum(layout.size for layout in self.layouts(group))

    def _cut(self, name: str, kind: Kind, rank: int) -> Kind:
        cut = cut_of(name, self.config, self.tp, rank)
        return kind if cut is None else Kind(kind.dtype, cut.shape(kind.shape))


def make_plan(
    config: DecoderConfig, kind_of: Callable[[str], Kind], dtype: torch.dtype | None, tp: int, file_bytes: int
) -> Plan:
    """Divide a model into files.

    Args:
        kind_of: what a tensor of the source is; `dtype` None keeps that.
        file_bytes: where a rank's new file begins. A tensor stays whole, however large it is.

    Raises:
        UsageError: the model cannot be cut into `tp` portions.
    """
    check_tp(config, tp)
    groups: list[list[tuple[str, Kind]]] = [[]]
    size = 0
    for name in shapes(config):
        kind = kind_of(name)
        kind = Kind(dtype or kind.dtype, kind.shape)
        cut = cut_of(name, config, tp, 0)  # the first rank has the most
        shape = kind.shape if cut is None else cut.shape(kind.shape)
        more = torch.Size(shape).numel() * kind.dtype.itemsize
        if groups[-1] and size + more > file_bytes:
            groups.append([])
            size = 0
        groups[-1].append((name, kind))
        size += more
    return Plan(config, tp, tuple(_group(members, number, tp) for number, members in enumerate(groups, 1)))


def _group(members: list[tuple[str, Kind]], number: int, tp: int) -> Group:
    names, kinds = zip(*members, strict=True)
    return Group(names, kinds, tuple(f"weights-{rank:03}-{number:05}.safetensors" for rank in range(tp)))
