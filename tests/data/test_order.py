"""Orders are permutations, blends keep exact quotas, splits are Megatron's, skipped samples stay out."""

import math
from fractions import Fraction

import numpy as np
import pytest

from bloomery.data.order import PARTS, Blend, Skips, permuted, quotas_of, split_documents
from bloomery.errors import UsageError


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 100, 1000])
def test_the_keyed_permutation_is_one_to_one(size: int) -> None:
    assert sorted(permuted(i, size, key=7) for i in range(size)) == list(range(size))


def test_the_order_looks_random() -> None:
    order = np.array([permuted(i, 2000, key=3) for i in range(2000)])
    assert abs(np.corrcoef(order, np.arange(2000))[0, 1]) < 0.1
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.1


# --- blends ----------------------------------------------------------------------------------------------------------

BLENDS = [
    [1],
    [0.3, 0.7],
    [0.1, 0.2, 0.7],
    [1, 1, 1],
    [0.9] + [0.01] * 10,
    [3, 1.5, 0.25, 0.25],
    [1 / 3, 1 / 3, 1 / 3],
    [0.1234, 0.3, 0.0001],
    [999, 1],
    list(range(1, 40)),
]


@pytest.mark.parametrize("weights", BLENDS, ids=lambda weights: str(weights)[:30])
def test_no_source_is_ever_a_whole_sample_off_its_share(weights: list[float]) -> None:
    blend = Blend(weights)
    shares = [Fraction(quota, blend.period) for quota in blend.quotas]
    taken = [0] * len(weights)
    for i in range(min(2 * blend.period + 3, 5000)):
        source, turn = blend.place(i)
        assert turn == taken[source]  # every sample of a source once, in order
        taken[source] += 1
        assert all(abs(count - share * (i + 1)) < 1 for count, share in zip(taken, shares, strict=True))


def test_weights_are_taken_as_they_are_written() -> None:
    assert Blend([0.1, 0.2, 0.7]).quotas == (1, 2, 7)
    assert Blend([3, 1.5, 0.25, 0.25]).quotas == (12, 6, 1, 1)
    assert Blend([2, 2]).quotas == (1, 1)


def test_a_millionth_is_weighed_exactly() -> None:
    assert Blend([0.123457, 0.876543]).quotas == (123457, 876543)
    assert Blend([0.999999, 0.000001]).quotas == (999999, 1)


FINE = [[0.123456789, 0.3, 0.000001], [1, 2**20], [123456789, 987654322], [1e-9, 1], [math.pi, math.e]]


@pytest.mark.parametrize("weights", FINE, ids=str)
def test_weights_too_fine_to_be_kept_are_refused_with_the_nearest_that_are_not(weights: list[float]) -> None:
    with pytest.raises(UsageError, match="too fine: whole numbers in their ratio add up to more than") as caught:
        Blend(weights)
    assert "\n" not in str(caught.value)
    near = [int(number) for number in str(caught.value).rpartition("nearest are ")[2].split(", ")]
    assert sum(near) == PARTS
    assert min(near) >= 1  # nobody is left out
    for weight, quota in zip(weights, near, strict=True):
        assert abs(weight / sum(weights) - quota / PARTS) < 2 / PARTS
    quotas_of(near)


def test_a_place_far_into_a_run_is_found_at_once() -> None:
    blend = Blend([0.3, 0.7])
    source, turn = blend.place(10**15)
    assert abs(turn - 10**15 * [0.3, 0.7][source]) <= 1


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, float("nan")], [float("inf")]])
def test_a_weight_that_is_none_is_refused(weights: list[float]) -> None:
    with pytest.raises(UsageError, match=r"data\.weights holds"):
        Blend(weights)


# --- splits ----------------------------------------------------------------------------------------------------------


def megatron_split(count: int, shares: list[float]) -> list[int]:
    """Bounds by the rule of get_train_valid_test_split_, written anew from its description: rounded shares add up, and
    what they are too many is taken from every bound."""
    bounds = [0]
    for share in shares:
        bounds.append(bounds[-1] + round(share / sum(shares) * float(count)))
    return [0] + [bound - (bounds[-1] - count) for bound in bounds[1:]]


@pytest.mark.parametrize("count", [3, 20, 100, 999, 1000, 12345])
@pytest.mark.parametrize("split", ["949,50,1", "90,5,5", "1,1,1", "98,2,0", "100,0,0"])
def test_a_split_is_that_of_megatron(count: int, split: str) -> None:
    parts = split_documents(count, split)
    expected = megatron_split(count, [float(part) for part in split.split(",")])
    assert [parts[0].start, *(part.stop for part in parts)] == expected
    assert sum(map(len, parts)) == count


def test_a_split_may_leave_parts_out() -> None:
    assert [len(part) for part in split_documents(100, "9,1")] == [90, 10, 0]
    assert [len(part) for part in split_documents(100, "1")] == [100, 0, 0]


@pytest.mark.parametrize("split", ["", "a", "1,2,3,4", "0,0,0", "-1,2", "nan,1", "1,,2"])
def test_what_is_no_split_is_refused(split: str) -> None:
    with pytest.raises(UsageError, match="is no split"):
        split_documents(10, split)


# --- skipping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [["3-5"], ["0-0"], ["7-9", "2-4"], ["2-5", "4-8"], ["2-3", "4-5"], []])
def test_a_skipped_sample_never_comes_and_all_others_do(ranges: list[str]) -> None:
    left = {number for text in ranges for number in range(int(text.split("-")[0]), int(text.split("-")[1]) + 1)}
    expected = [number for number in range(60) if number not in left]
    assert [Skips(ranges).raw(i) for i in range(len(expected))] == expected


@pytest.mark.parametrize("text", ["5", "5-3", "a-b", "-1-3", "1-2-3", ""])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no range of samples"):
        Skips([text])
