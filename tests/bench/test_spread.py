"""Quantiles are numpy's and the standard library's; nothing measured is an error."""

import random
import statistics

import pytest

from bloomery.bench.spread import spread


def test_quantiles_are_those_of_the_standard_library() -> None:
    values = [random.Random(3).expovariate(1.0) for _ in range(501)]
    found, cuts = spread(values), statistics.quantiles(values, n=100, method="inclusive")
    assert found.median == pytest.approx(statistics.median(values))
    assert (found.p90, found.p99) == (pytest.approx(cuts[89]), pytest.approx(cuts[98]))
    assert (found.least, found.most, found.count) == (min(values), max(values), 501)


def test_one_value_is_all_quantiles_and_none_has_none() -> None:
    one = spread([2.5])
    assert {one.median, one.p90, one.p99, one.least, one.most} == {2.5}
    with pytest.raises(ValueError, match="needs a measurement"):
        spread([])
