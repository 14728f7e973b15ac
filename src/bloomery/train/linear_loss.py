"""Cross entropy of a linear head, a chunk of positions at a time: the logits of all are never in memory at once, nor
computed twice. Knows no decoder.

The gradient of a softmax is known as soon as its logits are, so the way back happens on the way there, as in Liger
Kernel (Hsu et al. 2024, section 3.2).

Letters: N positions, E hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

CACHED_BYTES, CHUNK_BYTES = 8 * 2**20, 64 * 2**20
"""Of the fp32 logits of a chunk: on a CPU what its cache may hold; elsewhere."""
PART_BYTES = 4 * 2**20
"""Of a part of the weight's gradient that is added to at once on a CPU."""
LEAST = 256
"""Positions of a chunk, however large the vocabulary: products of fewer rows waste the processor (docs/log.md)."""


def linear_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int = 0) -> Tensor:
    """Summed cross entropy, a scalar in fp32 (fp64 of fp64).

    Args:
        hidden: (N, E).
        weight, bias: (V, E) and (V,) of the head; under autocast the products are in its dtype.
        targets: (N,) what is to be predicted; -1 counts nothing.
        chunk: positions at a time; 0: as many as fit, at least `LEAST`.
    """
    kind = hidden.device.type
    rows = chunk or max(LEAST, (CACHED_BYTES if kind == "cpu" else CHUNK_BYTES) // (4 * weight.shape[0]))
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    wanted = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (hidden, weight, bias))
    loss: Tensor = _LinearLoss.apply(hidden, weight, bias, targets, rows, dtype, wanted)  # type: ignore[no-untyped-call]
    return loss


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rows: int,
        dtype: torch.dtype,
        wanted: bool,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
            exact = torch.float64 if dtype == torch.float64 else torch.float32
            total = torch.zeros((), dtype=exact, device=hidden.device)
            d_hidden = torch.empty_like(hidden) if wanted and hidden.requires_grad else None
            # Chunks add up in the weight's own dtype, whatever the products are in.
            d_weight = torch.empty_like(weight) if wanted and weight.requires_grad else None
            if d_weight is not None and not len(hidden):
                d_weight.zero_()  # no chunk is written over what is there
            d_bias = torch.zeros_like(bias) if wanted and bias is not None and bias.requires_grad else None
            # Logits, then their softmax, then the slope, of one chunk after the other in the same memory.
            products = matrix.new_empty(min(rows, len(hidden)), len(matrix))
            numbers = products if dtype == exact else products.to(exact)
            for begin in range(0, len(hidden), rows):
                part, wants = hidden[begin : begin + rows].to(dtype), targets[begin : begin + rows]
                low, high = products[: len(part)], numbers[: len(part)]
                if offset is None:
                    torch.mm(part, matrix.T, out=low)
                else:
                    torch.addmm(offset, part, matrix.T, out=low)
                _copy(low, high)
                counted, index = (wants >= 0).to(exact), wants.clamp(min=0)[:, None]
                chosen, tops = high.gather(1, index)[:, 0], high.amax(-1)
                sums = high.sub_(tops[:, None]).exp_().sum(-1)
                total += ((sums.log() + tops - chosen) * counted).sum()
                if not wanted:
                    continue
                high.mul_((counted / sums)[:, None]).scatter_add_(1, index, -counted[:, None])
                _copy(high, low)
                if d_hidden is not None:
                    d_hidden[begin : begin + rows] = low @ matrix
                if d_weight is not None:
                    _add_product(d_weight, low.T, part, first=begin == 0)
                if d_bias is not None:
                    d_bias += high.sum(0)
        ctx.save_for_backward(*(d for d in (d_hidden, d_weight, d_bias) if d is not None))
        ctx.there = tuple(d is not None for d in (d_hidden, d_weight, d_bias))
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        found = [next(saved).mul_(slope) if there else None for there in ctx.there]  # in place: it may be large
        return (*found, None, None, None, None)


def _copy(source: Tensor, to: Tensor) -> None:
    """Nothing where both are the same memory."""
    if source.dtype != to.dtype:
        to.copy_(source)


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """Add a @ b; the `first` is written over what is there, so that large sums need not be zeroed before."""
    if total.dtype == a.dtype:
        total.addmm_(a, b, beta=0 if first else 1)
        return
    # PyTorch makes a whole exact copy of what is added in another dtype: in parts, it stays in the processor's cache.
    rows = max(1, PART_BYTES // (total.element_size() * total.shape[1])) if total.device.type == "cpu" else len(total)
    for part, some in zip(total.split(rows), a.split(rows), strict=True):
        if first:
            part.copy_(some @ b)
        else:
            part.add_(some @ b)
