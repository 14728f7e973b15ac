"""Where a token stands: ALiBi slopes, biases of scores, rotary frequencies. Knows no module and no configuration.

Letters: N flat tokens, R rows, T queries of a row, S keys, H heads of queries, K heads of keys and values, each of
which G = H / K heads of queries share, D head size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def alibi_slopes(num_heads: int) -> list[float]:
    """One slope per head (Press et al. 2021, "Train Short, Test Long", section 3 and its reference code).

    A power of two n gives 2^(-8i/n), i = 1..n. Any other count takes the slopes of the largest power p <= n, then
    every other slope of 2p for the heads that remain.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    return slopes + [2.0 ** (-4.0 * i / power) for i in range(1, 2 * (num_heads - power), 2)]


@dataclass(frozen=True)
class AttentionRule:
    """What attention has to know of a decoder, the same in all its layers.

    `shared`: G. `slopes` (H,): ALiBi. `coarse_scale`: the bias is slope × key position, rounded to bf16, times this.
    `window`: a key so many places before the query, or more, is not seen.
    """

    shared: int = 1
    slopes: Tensor | None = None
    coarse_scale: float | None = None
    window: int | None = None


def position_bias(queries: Tensor, keys: Tensor, rule: AttentionRule) -> Tensor:
    """(R, K or 1, G*T, S) fp32, added to the scores: ALiBi, and -inf for keys that must not be seen.

    Distances instead of absolute key positions (which some implementations add) change nothing in the softmax, as it
    is invariant to a shift per query, and keep the numbers near a query small, so that they round less. Where absolute
    positions were rounded in training (`coarse_scale`), the rounding is part of the model and is repeated.

    Args:
        queries: (R, T) positions.
        keys: (S,) positions.
    """
    distance = (keys - queries[..., None])[:, None]  # (R, 1, T, S)
    if rule.slopes is None:
        bias = torch.zeros_like(distance, dtype=torch.float32)
    elif rule.coarse_scale is None:
        bias = distance * rule.slopes[:, None, None]
    else:
        coarse = rule.slopes[:, None, None].bfloat16() * keys.bfloat16()  # (H, 1, S)
        bias = (coarse.float() * rule.coarse_scale).expand(len(queries), -1, distance.shape[2], -1)
    unseen = distance > 0
    if rule.window is not None:
        unseen = unseen | (distance <= -rule.window)
    bias = bias.masked_fill(unseen, -torch.inf)  # (R, H or 1, T, S)
    if rule.slopes is None:
        return bias.repeat(1, 1, rule.shared, 1) if rule.shared > 1 else bias
    return bias.unflatten(1, (-1, rule.shared)).flatten(2, 3)


def rotary_frequencies(dims: int, theta: float, device: torch.device) -> Tensor:
    """(dims/2,) radians a position: theta^(-2i/dims) (Su et al. 2021, equation 15).

    In fp32, operation by operation as everyone computes it: at position 10,000 another rounding of a frequency would
    already be another angle.
    """
    return 1.0 / theta ** (torch.arange(0, dims, 2, device=device).float() / dims)


def scale_by_wavelength(frequencies: Tensor, factor: float, low: float, high: float, length: int) -> Tensor:
    """Slow frequencies divided by `factor`, fast ones kept, those between blended (Llama 3.1's reference code).

    Slow: fewer than `low` turns in `length` positions; fast: more than `high`.
    """
    turns = length / (2 * math.pi / frequencies)
    blend = (turns - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    return torch.where(turns < low, frequencies / factor, torch.where(turns > high, frequencies, blended))
