"""What an adapter does to one matrix or vector: formulas over tensors. Knows no name, no file and no layout.

Matrices are [out, in], tables of embeddings [rows, width].
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor


class Change(Protocol):
    """One step from a weight to the weight that an adapter wants."""

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether weights of this shape can be changed so."""
        ...

    def apply(self, weight: Tensor) -> Tensor:
        """A new weight of the same shape, fp32 from fp32."""
        ...


@dataclass(frozen=True, eq=False)
class LowRank:
    """LoRA (Hu et al. 2021, section 4.1): weight + scale × up @ down.

    With a magnitude DoRA (Liu et al. 2024, equation 5): the sum's rows, or its columns, then get these lengths.
    """

    up: Tensor  # (out, r)
    down: Tensor  # (r, in)
    scale: float
    magnitude: Tensor | None = None  # (out,), or (in,) by column
    by_column: bool = False

    def fits(self, shape: Sequence[int]) -> bool:
        if tuple(shape) != (self.up.shape[0], self.down.shape[1]):
            return False
        return self.magnitude is None or self.magnitude.shape == (shape[1 if self.by_column else 0],)

    def apply(self, weight: Tensor) -> Tensor:
        moved = torch.addmm(weight, self.up.float(), self.down.float(), alpha=self.scale)
        if self.magnitude is None:
            return moved
        along = 0 if self.by_column else 1
        lengths = torch.linalg.vector_norm(moved, dim=along)
        return moved * (self.magnitude.float() / lengths).unsqueeze(along)


@dataclass(frozen=True, eq=False)
class Scaled:
    """IA3 (Liu et al. 2022, section 3.3): rows, columns or single numbers times a learned factor."""

    factor: Tensor  # (out, 1), (1, in) or (out,)

    def fits(self, shape: Sequence[int]) -> bool:
        wanted = self.factor.shape
        return len(wanted) == len(shape) and all(one in (size, 1) for one, size in zip(wanted, shape, strict=True))

    def apply(self, weight: Tensor) -> Tensor:
        return weight * self.factor.float()


@dataclass(frozen=True, eq=False)
class Added:
    """Something of the same shape on top: the bias of a low-rank addition."""

    value: Tensor

    def fits(self, shape: Sequence[int]) -> bool:
        return self.value.shape == tuple(shape)

    def apply(self, weight: Tensor) -> Tensor:
        return weight + self.value.float()


@dataclass(frozen=True, eq=False)
class Replaced:
    """Other numbers altogether. `below`: of the model that the adapter was trained on, not of the adapter itself; then
    what is tied to this weight is replaced with it.
    """

    value: Tensor
    below: bool = False

    def fits(self, shape: Sequence[int]) -> bool:
        return self.value.shape == tuple(shape)

    def apply(self, weight: Tensor) -> Tensor:
        return self.value.float()


@dataclass(frozen=True, eq=False)
class Rows:
    """Other numbers for some rows of a table: tokens that were trained alone."""

    ids: Tensor  # (count,) whole numbers
    values: Tensor  # (count, width)

    def fits(self, shape: Sequence[int]) -> bool:
        inside = len(shape) == 2 and bool(((self.ids >= 0) & (self.ids < shape[0])).all())
        return inside and self.values.shape == (len(self.ids), shape[1])

    def apply(self, weight: Tensor) -> Tensor:
        return weight.index_copy(0, self.ids, self.values.float())


def same(one: Sequence[Change], other: Sequence[Change]) -> bool:
    """Whether two lists of changes turn equal weights into equal weights, number by number."""
    return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))


def _equal(one: Change, other: Change) -> bool:
    if isinstance(one, Replaced) and isinstance(other, Replaced):
        return torch.equal(one.value, other.value)
    if type(one) is not type(other):
        return False
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]  # type: ignore[arg-type]
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b for a, b in pairs
    )
