"""Cross entropy of a linear head, a chunk of positions at a time: the logits of all are never in memory at once, nor
computed twice. Knows no decoder.

The gradient of a softmax is known as soon as its logits are, so the way back happens on the way there, as in Liger
Kernel (Hsu et al. 2024, section 3.2).

Letters: N positions, E hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Of the fp32 logits of a chunk."""
LEAST = 64
"""Positions of a chunk, however large the vocabulary: products of fewer rows waste the processor."""


def linear_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int = 0) -> Tensor:
    """Summed cross entropy, a scalar in fp32 (fp64 of fp64).

    Args:
        hidden: (N, E).
        weight, bias: (V, E) and (V,) of the head; under autocast the products are in its dtype.
        targets: (N,) what is to be predicted; -1 counts nothing.
        chunk: positions at a time; 0: as many as `CHUNK_BYTES` hold.
    """
    rows = chunk or max(LEAST, CHUNK_BYTES // (4 * weight.shape[0]))
    kind = hidden.device.type
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
            d_weight = torch.zeros_like(weight) if wanted and weight.requires_grad else None
            d_bias = torch.zeros_like(bias) if wanted and bias is not None and bias.requires_grad else None
            for begin in range(0, len(hidden), rows):
                part, wants = hidden[begin : begin + rows].to(dtype), targets[begin : begin + rows]
                logits = torch.nn.functional.linear(part, matrix, offset).to(exact)
                counted = wants >= 0
                index = wants.clamp(min=0)[:, None]
                norms = logits.logsumexp(-1)
                losses = (norms - logits.gather(1, index)[:, 0]) * counted
                total = total + losses.sum()
                if not wanted:
                    continue
                slope = logits.sub_(norms[:, None]).exp_()  # the softmax
                slope.scatter_add_(1, index, torch.full_like(index, -1, dtype=slope.dtype))
                slope = slope.mul_(counted[:, None]).to(dtype)
                if d_hidden is not None:
                    d_hidden[begin : begin + rows] = slope @ matrix
                if d_weight is not None:
                    d_weight += slope.T @ part
                if d_bias is not None:
                    d_bias += slope.sum(0)
        ctx.save_for_backward(*(d for d in (d_hidden, d_weight, d_bias) if d is not None))
        ctx.there = tuple(d is not None for d in (d_hidden, d_weight, d_bias))
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        found = [next(saved).mul_(slope) if there else None for there in ctx.there]  # in place: it may be large
        return (*found, None, None, None, None)
