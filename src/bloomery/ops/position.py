"""Where a token stands: ALiBi slopes. Pure functions; know nothing of modules."""

import math


def alibi_slopes(num_heads: int) -> list[float]:
    """One slope per head (Press et al. 2021, "Train Short, Test Long", section 3 and its reference code).

    A power of two n gives 2^(-8i/n), i = 1..n. Any other count takes the slopes of the largest power p <= n, then
    every other slope of 2p for the heads that remain.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    return slopes + [2.0 ** (-4.0 * i / power) for i in range(1, 2 * (num_heads - power), 2)]
