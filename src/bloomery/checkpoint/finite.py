"""Numbers that are none: NaN and infinite weights, found tensor by tensor. Knows no file and no family."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from bloomery.checkpoint.tensors import Tensors
from bloomery.quant.pack import scales
from bloomery.quant.swap import Weight

CHUNK = 1 << 22
"""Numbers looked at in one go: what is computed of them stays small beside the tensor."""


class Flaw(NamedTuple):
    """A tensor by our name that is not finite, and how many of its numbers are NaN or infinite."""

    name: str
    nan: int
    infinite: int
    total: int

    def __str__(self) -> str:
        found = [f"{count:,} {what}" for count, what in ((self.nan, "NaN"), (self.infinite, "infinite")) if count]
        return f"tensor '{self.name}' is not finite: {' and '.join(found)} of {self.total:,} numbers"


def find_flaws(tensors: Tensors, weights: Mapping[str, Weight]) -> Iterator[Flaw]:
    """Those of the tensors that hold NaN or infinite numbers. Every number is read, so this takes the disk's time; of a
    packed weight, every scale: what is beside them is finite whatever it is.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    for name, weight in weights.items():
        tensor = tensors.read(name)
        if weight.scheme is not None:
            tensor = scales(tensor, weight.scheme)
        nan = infinite = 0
        for chunk in tensor.reshape(-1).split(CHUNK):
            if not chunk.isfinite().all():
                nan += int(chunk.isnan().sum())
                infinite += int(chunk.isinf().sum())
        total = tensor.numel()
        del tensor
        tensors.release(name)
        if nan or infinite:
            yield Flaw(name, nan, infinite, total)
