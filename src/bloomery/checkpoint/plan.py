"""A store's files before they are written: which tensors, in which order, of which ranks. Reads and writes nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bloomery.checkpoint.header import Kind
from bloomery.checkpoint.write import ALIGNMENT, Layout, lay_out
from bloomery.model.config import DecoderConfig
from bloomery.model.layout import check_tp, cut_of
from bloomery.quant.pack import pack
from bloomery.quant.scheme import Scheme
from bloomery.quant.swap import Weight, weights


class Planned(NamedTuple):
    """A tensor of a store, and its dtype there."""

    name: str
    weight: Weight
    dtype: torch.dtype


class Group(NamedTuple):
    """Tensors that are neighbours in a store: one file for each rank, written at once."""

    tensors: tuple[Planned, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A store's files before they are written."""

    config: DecoderConfig
    tp: int
    scheme: Scheme | None
    groups: tuple[Group, ...]

    def layouts(self, group: Group) -> list[Layout]:
        """Each rank's file."""
        return [
            lay_out(((one.name, kind_of(one, self.config, self.tp, rank)) for one in group.tensors), ALIGNMENT)
            for rank in range(self.tp)
        ]

    def size(self, group: Group) -> int:
        return sum(layout.size for layout in self.layouts(group))

    def portion(self, planned: Planned, whole: Tensor, rank: int, what: str) -> Tensor:
        """What a rank keeps of a tensor of the source, packed where that is planned: cut first, so that no rank's scale
        depends on another's numbers.

        Raises:
            CheckpointError: a number to be packed is NaN or infinite; `what` names the tensor.
        """
        cut = cut_of(planned.name, self.config, self.tp, rank)
        part = whole if cut is None else cut.take(whole)
        return part if planned.weight.scheme is None else pack(part, planned.weight.scheme, what)


def kind_of(planned: Planned, config: DecoderConfig, tp: int, rank: int) -> Kind:
    """As what a rank keeps it."""
    return Kind(planned.dtype, planned.weight.kept(cut_of(planned.name, config, tp, rank)))


def make_plan(
    config: DecoderConfig,
    kind_in_source: Callable[[str], Kind],
    dtype: torch.dtype | None,
    tp: int,
    file_bytes: int,
    scheme: Scheme | None = None,
) -> Plan:
    """Divide a model into files.

    Args:
        kind_in_source: what a tensor of the source is.
        dtype: of what is not packed; None keeps the source's.
        file_bytes: where a rank's new file begins. A tensor stays whole, however large it is.

    Raises:
        UsageError: the model cannot be cut into `tp` portions.
    """
    check_tp(config, tp)
    groups: list[list[Planned]] = [[]]
    size = 0
    for name, weight in weights(config, scheme).items():
        kept_in = torch.uint8 if weight.scheme is not None else dtype or kind_in_source(name).dtype
        planned = Planned(name, weight, kept_in)
        kind = kind_of(planned, config, tp, 0)  # the first rank has the most
        more = torch.Size(kind.shape).numel() * kind.dtype.itemsize
        if groups[-1] and size + more > file_bytes:
            groups.append([])
            size = 0
        groups[-1].append(planned)
        size += more
    return Plan(config, tp, scheme, tuple(_group(members, number, tp) for number, members in enumerate(groups, 1)))


def _group(members: list[Planned], number: int, tp: int) -> Group:
    return Group(tuple(members), tuple(f"weights-{rank:03}-{number:05}.safetensors" for rank in range(tp)))
