"""Finds where a text of tokens goes round in circles. Knows no model and no string."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEAST = 20
DEFINITION = (
    f"a loop: at least {LEAST} tokens in a row, each the same as the token a fixed distance (the period) before it, "
    "and at least a whole period of them, so that a stretch of tokens is followed at once by itself"
)


class Loop(NamedTuple):
    """`repeated` tokens from `start` on are each the same as the token `period` before."""

    start: int
    period: int
    repeated: int


def longest_loop(ids: Sequence[int], least: int = LEAST) -> Loop | None:
    """The loop with the most repeated tokens, of these the one with the shortest period; None where there is none.

    Args:
        ids: the tokens.
        least: repeated tokens that make a loop.
    """
    tokens, longest = np.asarray(ids, dtype=np.int64), None
    for period in range(1, len(tokens) // 2 + 1):
        same = tokens[period:] == tokens[:-period]
        borders = np.flatnonzero(np.diff(same, prepend=False, append=False))
        starts, stops = borders[::2], borders[1::2]
        if not len(starts):
            continue
        at = int(np.argmax(stops - starts))
        repeated = int(stops[at] - starts[at])
        if repeated >= max(period, least) and (longest is None or repeated > longest.repeated):
            longest = Loop(int(starts[at]) + period, period, repeated)
    return longest
