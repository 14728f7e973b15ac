"""Which token a number draws from a distribution: by our own kernel on a CPU, by PyTorch's elsewhere."""

import math
import struct

import torch
from torch import Tensor

from bloomery.ops.choice import has_native
from bloomery.ops.largest import largest
from bloomery.ops.native.calls import address, call

PART = 16384
"""Numbers that one thread adds up, as in kernels.h."""


def inverse_cdf(logits: Tensor, u: float) -> int:
    """The first token, in the order of ids, at which the cumulative probability exceeds u. (V,) -> id.

    In float64, so that a vocabulary of 250,000 does not lose its tail to rounding.
    """
    if logits.dtype == torch.float32 and logits.is_contiguous() and has_native(logits.dtype, logits.device):
        most = largest(logits)[0]
        if math.isfinite(most):
            return _drawn(logits, most, u)
    cdf = logits.double().softmax(-1).cumsum(-1)
    return int(torch.searchsorted(cdf, u * cdf[-1], right=True))


def _drawn(logits: Tensor, most: float, u: float) -> int:
    sums = torch.empty(-(-len(logits) // PART), dtype=torch.float64)
    drawn = torch.empty(1, dtype=torch.int64)
    doubles = struct.unpack("2q", struct.pack("2d", most, u))
    call("draw", address(logits), address(sums), address(drawn), len(logits), *doubles)
    return int(drawn)


def accept_or_redraw(target: Tensor, drawn_from: Tensor, guess: int, test: float, again: float) -> int:
    """A token of the target's distribution, given one drawn from another: the guess where it is accepted. (V,) each.

    Speculative sampling (Leviathan et al. 2023, algorithm 1; Chen et al. 2023, theorem 1), with p the target's
    distribution and q the other: the guess x is accepted with probability p(x) / q(x), else a token is drawn from
    max(0, p - q), normalised, which never gives x.

    Args:
        target, drawn_from: logits of p and of q.
        test, again: numbers in [0, 1): for the test, and for the draw after it.
    """
    p, q = target.double().softmax(-1), drawn_from.double().softmax(-1)
    left = (p - q).clamp(min=0)
    # Nothing is left where the two differ by rounding only.
    if test * float(q[guess]) < float(p[guess]) or not left.any():
        return guess
    return inverse_cdf(left.log(), again)
