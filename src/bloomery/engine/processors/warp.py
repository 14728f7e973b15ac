"""Processors that shape or cut the distribution to sample from. They look at logits only, and know no request.

`keep` tokens are always left: 1, or more for beams, which must be able to go on beside an end of sequence.
"""

import torch
from torch import Tensor

from bloomery.engine.processors.signature import Processor

LIKELIEST = 100
"""Tokens that top_h looks at, as Hugging Face has it."""


def temperature(divisor: float) -> Processor:
    """Flatter above 1, steeper below."""
    return lambda _, logits: logits / divisor


def top_h(fraction: float) -> Processor:
    """Keep the likeliest tokens whose shares of the entropy add up to `fraction` of it (Potraghloo et al. 2025)."""

    def process(_: Tensor, logits: Tensor) -> Tensor:
        values, order = logits.topk(min(LIKELIEST, logits.shape[-1]))
        normalized = values - values.logsumexp(-1, keepdim=True)
        probabilities = normalized.softmax(-1)
        shares = -probabilities * probabilities.log()
        kept = shares.cumsum(-1) <= fraction * _entropy(normalized, probabilities)
        kept[..., 0] = True
        return logits.masked_fill(~torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, kept), -torch.inf)

    return process


def top_k(k: int, keep: int = 1) -> Processor:
    """Keep the k largest, and what equals the k-th."""

    def process(_: Tensor, logits: Tensor) -> Tensor:
        return logits.masked_fill(logits < _nth_largest(logits, max(k, keep)), -torch.inf)

    return process


def top_p(p: float, keep: int = 1) -> Processor:
    """Keep the smallest set of likeliest tokens whose probabilities reach p (Holtzman et al. 2019)."""

    def process(_: Tensor, logits: Tensor) -> Tensor:
        ascending, order = torch.sort(logits)
        outside = ascending.softmax(-1).cumsum(-1) <= 1 - p
        outside[..., -keep:] = False
        return logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)

    return process


def min_p(fraction: float, keep: int = 1) -> Processor:
    """Keep what is at least `fraction` as likely as the likeliest (Nguyen et al. 2024)."""

    def process(_: Tensor, logits: Tensor) -> Tensor:
        probabilities = logits.softmax(-1)
        outside = probabilities < fraction * probabilities.amax(-1, keepdim=True)
        likeliest = probabilities.topk(min(keep, logits.shape[-1])).indices
        return logits.masked_fill(outside.scatter(-1, likeliest, False), -torch.inf)

    return process


def typical_p(mass: float, keep: int = 1) -> Processor:
    """Keep the tokens whose surprise is nearest to the expected one, until they reach `mass` (Meister et al. 2022)."""

    def process(_: Tensor, logits: Tensor) -> Tensor:
        logprobs = logits.log_softmax(-1)
        entropy = -(logprobs * logprobs.exp()).nansum(-1, keepdim=True)
        distance, order = torch.sort((-logprobs - entropy).abs())
        reached = logits.gather(-1, order).softmax(-1).cumsum(-1)
        last = (reached < mass).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
        outside = distance > distance.gather(-1, last)
        outside[..., :keep] = False
        return logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)

    return process


def epsilon_cutoff(epsilon: float, keep: int = 1) -> Processor:
    """Keep what is at least `epsilon` likely (Hewitt et al. 2022)."""

    def process(_: Tensor, logits: Tensor) -> Tensor:
        outside = logits.softmax(-1) < epsilon
        return logits.masked_fill(outside & (logits < _nth_largest(logits, keep)), -torch.inf)

    return process


def eta_cutoff(epsilon: float, keep: int = 1) -> Processor:
    """Keep what is at least min(epsilon, sqrt(epsilon) exp(-entropy)) likely (Hewitt et al. 2022)."""

    def process(_: Tensor, logits: Tensor) -> Tensor:
        limit = logits.new_tensor(epsilon)
        normalized = logits - logits.logsumexp(-1, keepdim=True)
        entropy = _entropy(normalized, normalized.softmax(-1))
        outside = logits.softmax(-1) < torch.minimum(limit, limit.sqrt() * torch.exp(-entropy))
        return logits.masked_fill(outside & (logits < _nth_largest(logits, keep)), -torch.inf)

    return process


def renormalize(_: Tensor, logits: Tensor) -> Tensor:
    """Log-probabilities of what is left."""
    return logits.log_softmax(-1)


def _entropy(logprobs: Tensor, probabilities: Tensor) -> Tensor:
    """(R, V) -> (R, 1). What cannot be has no part in it."""
    return -(logprobs.clamp(min=torch.finfo(logprobs.dtype).min) * probabilities).sum(-1, keepdim=True)


def _nth_largest(logits: Tensor, n: int) -> Tensor:
    """(R, V) -> (R, 1)."""
    return logits.topk(min(n, logits.shape[-1])).values[..., -1:]
