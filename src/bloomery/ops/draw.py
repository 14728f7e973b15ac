"""Which token a number draws from a distribution."""

import torch
from torch import Tensor


def inverse_cdf(logits: Tensor, u: float) -> int:
    """The first token, in the order of ids, at which the cumulative probability exceeds u. (V,) -> id.

    In float64, so that a vocabulary of 250,000 does not lose its tail to rounding.
    """
    cdf = logits.double().softmax(-1).cumsum(-1)
    return int(torch.searchsorted(cdf, u * cdf[-1], right=True))
