"""Attention as its formula says it, in float64, and rules and numbers to try. Knows no test."""

import numpy as np
import torch
from numpy.typing import NDArray

from bloomery.ops.position import AttentionRule

Array = NDArray[np.float64]
SLOPES = torch.tensor([0.5, 0.25, 0.01, 0.1])
RULES = {
    "alibi": AttentionRule(slopes=SLOPES),
    "plain": AttentionRule(),
    "window": AttentionRule(window=9),
    "shared": AttentionRule(shared=2),
    "shared-alibi": AttentionRule(shared=2, slopes=SLOPES),
    "all-share-one-in-a-window": AttentionRule(shared=4, window=66),
}
HEADS = 4


def softmax_attention(query: Array, keys: Array, values: Array, first: int, rule: AttentionRule) -> Array:
    """(T, H, D) of queries at places first … first+T, each over all keys (S, K, D) up to its own place."""
    keys, values = (x.repeat(rule.shared, axis=1) for x in (keys, values))
    scores = np.einsum("thd,shd->hts", query, keys) / np.sqrt(query.shape[-1])
    places, seen = np.arange(first, first + len(query))[:, None], np.arange(len(keys))[None]
    if rule.slopes is not None:
        scores = scores + rule.slopes.double().numpy()[:, None, None] * (seen - places)
    visible = (seen <= places) & (seen > places - (rule.window or np.inf))
    weights = np.where(visible, np.exp(scores - scores.max()), 0)
    return np.einsum("hts,shd->thd", weights / weights.sum(-1, keepdims=True), values)


def random_qkv(tokens: int, rule: AttentionRule, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    heads = (HEADS, HEADS // rule.shared, HEADS // rule.shared)
    return [torch.randn(tokens, count, 8, generator=generator) for count in heads]


def expect(actual: torch.Tensor, expected: Array) -> None:
    torch.testing.assert_close(actual.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
