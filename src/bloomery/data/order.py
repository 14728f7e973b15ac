"""Which sample comes when, as pure functions of integers: no cursor and no generator. Knows no token and no file."""

import re
from collections.abc import Sequence
from fractions import Fraction
from heapq import heappop, heappush
from itertools import accumulate
from math import isfinite, lcm

import numpy as np

from bloomery.errors import UsageError
from bloomery.ops.random import keyed

ROUNDS = 4
"""Luby and Rackoff 1988: four Feistel rounds of a random function cannot be told from a random permutation."""

PARTS = 2**20
"""A blend repeats after so many samples at most: a millionth can be weighed."""

Shorts = np.ndarray[tuple[int], np.dtype[np.int32]]


def permuted(index: int, size: int, key: int) -> int:
    """Where a keyed permutation of 0 … size-1 sends `index`: a Feistel network over the next even number of bits.

    It is a permutation of a power of 4; results outside `size` are sent on until one is inside (cycle walking,
    Black and Rogaway 2002), which keeps it one to one.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for turn in range(ROUNDS):
            left, right = right, left ^ (keyed(key, turn, right) & low)
        index = left << half | right
        if index < size:
            return index


class Blend:
    """Sample i of a run is sample j of source s: exact quotas, so that no share is ever more than a sample off.

    Of the first n samples, floor(n w) or ceil(n w) are a source's, for every n and every source of weight w: the
    windows of P-fair scheduling (Baruah, Cohen, Plaxton and Varvel 1996), filled by the earliest deadline, which on one
    machine always meets them. The pattern repeats after `period` samples.

    Args:
        weights: as for `quotas_of`.

    Raises:
        UsageError: as `quotas_of`.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.quotas = quotas_of(weights)
        """Samples of each source in one period."""
        self.period = sum(self.quotas)
        self._source: Shorts = np.array(_earliest_deadline(self.quotas), dtype=np.int32)
        self._turn: Shorts = np.empty(self.period, dtype=np.int32)
        for source, quota in enumerate(self.quotas):
            self._turn[self._source == source] = np.arange(quota, dtype=np.int32)

    def place(self, index: int) -> tuple[int, int]:
        """The source of sample `index`, and how many of that source's samples come before it."""
        turn, at = divmod(index, self.period)
        source = int(self._source[at])
        return source, turn * self.quotas[source] + int(self._turn[at])


def quotas_of(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in the exact ratio of the weights, with the smallest sum.

    Args:
        weights: one a source, above 0; only their ratios count. Decimals are taken as they are written, 0.1 being a
            tenth.

    Raises:
        UsageError: a weight is not above 0, there are more sources than parts, or the sum would be above `PARTS`.
    """
    for weight in weights:
        if not (weight > 0 and isfinite(weight)):
            raise UsageError(f"data.weights holds {weight}: give a number above 0 for each source")
    if len(weights) > PARTS:
        raise UsageError(f"data.weights are {len(weights)}: merge token files, so that there are at most {PARTS}")
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    period = 1
    for share in shares:
        period = lcm(period, share.denominator)
        if period > PARTS:
            near = ", ".join(map(str, _rounded(shares)))
            raise UsageError(
                f"data.weights are too fine: whole numbers in their ratio add up to more than {PARTS:,}; round them, "
                f"nearest are {near}"
            )
    return tuple(int(share * period) for share in shares)


def _rounded(shares: Sequence[Fraction]) -> tuple[int, ...]:
    """`PARTS` dealt out by largest remainder, and at least one to each."""
    spare = PARTS - len(shares)
    wanted = [max(share * PARTS - 1, Fraction(0)) for share in shares]
    scale = spare / sum(wanted)
    given = [int(part * scale) for part in wanted]
    order = sorted(range(len(shares)), key=lambda source: (given[source] - wanted[source] * scale, source))
    for source in order[: spare - sum(given)]:
        given[source] += 1
    return tuple(part + 1 for part in given)


def _earliest_deadline(quotas: Sequence[int]) -> list[int]:
    """The source of each of the sum(quotas) samples of a period.

    Job j of a source with quota q of P may be done from slot floor(j P / q) on and before slot ceil((j + 1) P / q).
    """
    period = sum(quotas)
    waiting = [(0, source, 0) for source in range(len(quotas))]  # (slot from which it may be done, source, job)
    ready: list[tuple[int, int, int]] = []  # (slot before which it must be done, source, job)
    chosen = []
    for slot in range(period):
        while waiting and waiting[0][0] <= slot:
            _, source, job = heappop(waiting)
            heappush(ready, (-(-(job + 1) * period // quotas[source]), source, job))
        _, source, job = heappop(ready)
        chosen.append(source)
        if job + 1 < quotas[source]:
            heappush(waiting, ((job + 1) * period // quotas[source], source, job + 1))
    return chosen


class Skips:
    """Samples that a run leaves out, as ranges "a-b" of their numbers in the run without skips; both ends are left out.

    Raises:
        UsageError: a range is no range.
    """

    def __init__(self, ranges: Sequence[str]) -> None:
        self.ranges: list[tuple[int, int]] = []
        """(first, last), in order, apart from each other."""
        for first, last in sorted(_range(text) for text in ranges):
            if self.ranges and first <= self.ranges[-1][1] + 1:
                self.ranges[-1] = (self.ranges[-1][0], max(last, self.ranges[-1][1]))
            else:
                self.ranges.append((first, last))

    def raw(self, index: int) -> int:
        """The number, in the run without skips, of the sample that is number `index` in the run with them."""
        for first, last in self.ranges:
            if index < first:
                break
            index += last - first + 1
        return index


def _range(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", text)
    if found is None or int(found[1]) > int(found[2]):
        raise UsageError(f"data.skip '{text}' is no range of samples: write it as FIRST-LAST, such as 1000-1999")
    return int(found[1]), int(found[2])


def split_documents(count: int, split: str) -> tuple[range, range, range]:
    """The documents to learn from, to validate and to test: three ranges that follow each other, as Megatron cuts them
    (megatron/data/dataset_utils.py, get_train_valid_test_split_).

    Args:
        split: up to three numbers whose ratio counts, such as "949,50,1".

    Raises:
        UsageError: they are no such numbers.
    """
    try:
        shares = [float(part) for part in split.split(",")]
    except ValueError:
        shares = []
    if not 1 <= len(shares) <= 3 or not all(share >= 0 and isfinite(share) for share in shares) or sum(shares) == 0:
        raise UsageError(f"data.split '{split}' is no split: give three numbers, such as 949,50,1")
    shares += [0.0] * (3 - len(shares))
    sizes = [round(share / sum(shares) * count) for share in shares]
    surplus = sum(sizes) - count  # of rounding; Megatron takes it from the first part
    first, second, _ = accumulate(sizes)
    bounds = [0, *(min(max(bound - surplus, 0), count) for bound in (first, second)), count]
    return range(bounds[0], bounds[1]), range(bounds[1], bounds[2]), range(bounds[2], bounds[3])
