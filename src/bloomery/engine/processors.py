"""Logits -> logits, in Hugging Face's order, seeing real tokens only. Knows no request and chooses no token."""

from collections.abc import Callable

import torch
from torch import Tensor

from bloomery.engine.params import SamplingParams

Processor = Callable[[Tensor, int], Tensor]
"""(logits (V,) fp32, number of tokens generated so far) -> logits (V,)."""


def build_processors(params: SamplingParams, eos_ids: tuple[int, ...]) -> list[Processor]:
    """What `params` asks for, in the order in which Hugging Face applies it."""
    chain: list[Processor] = []
    if params.min_new_tokens and eos_ids:
        chain.append(min_new_tokens(params.min_new_tokens, eos_ids))
    if params.temperature > 0:
        chain.append(lambda logits, _: logits / params.temperature)
        if params.top_k is not None:
            chain.append(top_k(params.top_k))
        if params.top_p is not None and params.top_p < 1:
            chain.append(top_p(params.top_p))
        if params.min_p is not None:
            chain.append(min_p(params.min_p))
    return chain


def min_new_tokens(least: int, eos_ids: tuple[int, ...]) -> Processor:
    """No end of sequence among the first `least` tokens."""
    index = torch.tensor(eos_ids)

    def process(logits: Tensor, generated: int) -> Tensor:
        return logits if generated >= least else logits.index_fill(-1, index.to(logits.device), -torch.inf)

    return process


def top_k(k: int) -> Processor:
    """Keep the k largest, and what equals the k-th."""

    def process(logits: Tensor, _: int) -> Tensor:
        if k >= logits.shape[-1]:
            return logits
        return logits.masked_fill(logits < torch.topk(logits, k).values[..., -1:], -torch.inf)

    return process


def top_p(p: float) -> Processor:
    """Keep the smallest set of likeliest tokens whose probabilities reach p (Holtzman et al. 2019)."""

    def process(logits: Tensor, _: int) -> Tensor:
        ascending, order = torch.sort(logits)
        outside = ascending.softmax(-1).cumsum(-1) <= 1 - p
        outside[..., -1] = False
        return logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)

    return process


def min_p(fraction: float) -> Processor:
    """Keep what is at least `fraction` as likely as the likeliest (Nguyen et al. 2024)."""

    def process(logits: Tensor, _: int) -> Tensor:
        probabilities = logits.softmax(-1)
        return logits.masked_fill(probabilities < fraction * probabilities.max(-1, keepdim=True).values, -torch.inf)

    return process
