"""Checks of options, each with its one line. Knows no option."""

import math
from typing import Any

from bloomery.errors import UsageError

MOST = 2**31 - 1
"""No size is larger, so that every product of two fits 64 bits."""
LONGEST = 2**53
"""No count of samples or tokens is larger: every JSON reader takes it exactly."""


def check(holds: bool, message: str) -> None:
    """What must hold.

    Raises:
        UsageError: with `message`, where it does not.
    """
    if not holds:
        raise UsageError(message)


def check_counts(section: str, options: Any, *names: str, most: int = MOST, least: int = 1) -> None:
    """Whole numbers within bounds; unset ones are left alone."""
    for name in names:
        value = getattr(options, name)
        if value is not None:
            check(value >= least, f"{section}.{name} is {value}: give a whole number from {least} up")
            check(value <= most, f"{section}.{name} is {value}: give at most {most}")


def check_between(section: str, options: Any, low: float, high: float, *names: str, open_at: str = "") -> None:
    """Finite numbers from `low` to `high`, the ends named in `open_at` ("low", "high" or both) left out."""
    for name in names:
        value = getattr(options, name)
        if value is None:
            continue
        left = value > low if "low" in open_at else value >= low
        right = value < high if "high" in open_at else value <= high
        ends = f"{'above' if 'low' in open_at else 'from'} {low:g}" + (
            "" if high == math.inf else f" {'to below' if 'high' in open_at else 'to'} {high:g}"
        )
        check(math.isfinite(value) and left and right, f"{section}.{name} is {value}: give a number {ends}")
