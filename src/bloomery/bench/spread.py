"""Many measurements of one thing -> what to say of them. Knows no clock."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Quantiles of `count` measurements, between which they are interpolated linearly; all in one unit."""

    median: float
    p90: float
    p99: float
    least: float
    most: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value. Raises ValueError where there is none."""
    if not values:
        raise ValueError("a spread needs a measurement")
    median, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    return Spread(median, p90, p99, min(values), max(values), len(values))
