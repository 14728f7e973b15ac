"""Keys or values as they are kept: numbers of one dtype, or 8 bits with a scale for each vector. Knows no sequence.

What a head reads of a block lies in one piece: processors foresee that, but not pieces a row of all heads apart.

Letters as in `attention.py`. What is rounded has the same bits as by our own kernel (native/attention_keep.h).
"""

from typing import NamedTuple

import torch
from torch import Tensor

LEVELS = 127
"""The largest of the numbers of 8 bits: as many below zero as above."""


class Kept(NamedTuple):
    """The keys, or the values, of all blocks, of one layer or of several in front."""

    numbers: Tensor  # (..., blocks, K, BLOCK, D)
    scales: Tensor | None = None  # (..., blocks, K, BLOCK) fp32 of numbers in int8: what each number counts for

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> "Kept":
        """Room for numbers of a shape. Raises RuntimeError where there is no memory for it."""
        scales = torch.empty(shape[:-1], device=device) if dtype == torch.int8 else None
        return cls(torch.empty(shape, dtype=dtype, device=device), scales)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it consists of; their dimensions are the same up to BLOCK."""
        return (self.numbers,) if self.scales is None else (self.numbers, self.scales)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def layer(self, layer: int) -> "Kept":
        """Those of one layer, of several."""
        return Kept(self.numbers[layer], None if self.scales is None else self.scales[layer])

    def computed_in(self, dtype: torch.dtype) -> torch.dtype:
        """What PyTorch's attention computes in, for queries of a dtype: as numbers are kept, or fp32 on a CPU."""
        if self.scales is None:
            return self.numbers.dtype
        return torch.float32 if self.numbers.device.type == "cpu" else dtype

    def write(self, places: Tensor, x: Tensor) -> None:
        """Keep x, (..., N, K, D), at places (N,) counted over all blocks."""
        numbers, scales = (x.to(self.numbers.dtype), None) if self.scales is None else round_vectors(x)
        block = self.numbers.shape[-2]
        blocks, positions = places.div(block, rounding_mode="floor"), places.remainder(block)
        self.numbers.transpose(-3, -2)[..., blocks, positions, :, :] = numbers
        if self.scales is not None and scales is not None:
            self.scales.transpose(-2, -1)[..., blocks, positions, :] = scales

    def read(self, blocks: Tensor | slice, dtype: torch.dtype) -> Tensor:
        """Blocks of one layer, (..., K, BLOCK, D): as they are kept, those of int8 in `dtype`."""
        if self.scales is None:
            return self.numbers[blocks]
        return self.numbers[blocks].float().mul_(self.scales[blocks].unsqueeze(-1)).to(dtype)


def round_vectors(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., D) -> int8 of the same shape and their scales (...), fp32: largest magnitude / 127.

    A number is x / scale to the nearest, ties to even. Where the scale is no normal number, vector and scale are zeros;
    where one of a vector's numbers is not finite, its scale is NaN.
    """
    x = x.float()
    scales = x.abs().amax(-1) / LEVELS
    scales = scales.where(scales.isfinite(), torch.nan)
    scales = scales.where(~(scales < torch.finfo(torch.float32).tiny), 0)
    divisors = scales.unsqueeze(-1)
    return (x / divisors).where(divisors > 0, 0).round().to(torch.int8), scales


def vector_bytes(size: int, dtype: torch.dtype) -> int:
    """What one vector of `size` numbers takes."""
    return size * dtype.itemsize + (torch.float32.itemsize if dtype == torch.int8 else 0)
