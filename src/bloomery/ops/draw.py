"""Which token a number draws from a distribution."""

import torch
from torch import Tensor


def inverse_cdf(logits: Tensor, u: float) -> int:
    """The first token, in the order of ids, at which the cumulative probability exceeds u. (V,) -> id.

    In float64, so that a vocabulary of 250,000 does not lose its tail to rounding.
    """
    cdf = logits.double().softmax(-1).cumsum(-1)
    return int(torch.searchsorted(cdf, u * cdf[-1], right=True))


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
