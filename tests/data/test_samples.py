"""A sample is a function of seed and index alone; an epoch is every window once; documents are told apart."""

from collections import Counter

import numpy as np
import pytest

from bloomery.data.order import Blend
from bloomery.data.samples import Samples
from bloomery.data.source import Source
from bloomery.errors import UsageError


def numbers(count: int, first: int = 0, ends: list[int] | None = None) -> Source:
    ids = np.arange(first, first + count, dtype=np.int32)
    return Source(ids, ends=None if ends is None else np.array(ends))


def starts(samples: Samples, first: int, count: int) -> list[int]:
    return samples.take(first, count).ids[:, 0].tolist()


def test_a_sample_is_the_text_and_one_token_more() -> None:
    samples = Samples([numbers(500)], seq_len=20, seed=9)
    windows = samples.take(0, 50)
    assert windows.segments is None
    assert windows.ids.dtype == np.int64
    assert np.array_equal(windows.ids, windows.ids[:, :1] + np.arange(21))


@pytest.mark.parametrize("weights", [None, [0.3, 0.7]])
def test_sample_is_a_pure_function_of_seed_and_index(weights: list[float] | None) -> None:
    def fresh(seed: int) -> Samples:
        return Samples([numbers(1000), numbers(700, 5000)], weights=weights, seq_len=10, seed=seed)

    forward = fresh(5).take(0, 300).ids
    again = fresh(5)
    backward = np.concatenate([again.take(i, 1).ids for i in reversed(range(300))])[::-1]
    assert np.array_equal(forward, backward)
    assert np.array_equal(forward[40:48], fresh(5).take(40, 8).ids)
    assert not np.array_equal(forward, fresh(6).take(0, 300).ids)


def test_one_epoch_visits_every_window_of_every_source_once() -> None:
    samples = Samples([numbers(1003), numbers(505, 5000)], seq_len=10, seed=1)
    assert samples.windows == (99 + 49,)
    for epoch in range(3):
        found = sorted(starts(samples, epoch * 148, 148))
        offset = found[0]
        assert 0 <= offset < 10
        assert found == [*range(offset, offset + 990, 10), *range(5000 + offset, 5000 + offset + 490, 10)]


def test_epochs_differ_in_order_and_in_where_the_text_is_cut() -> None:
    samples = Samples([numbers(5000)], seq_len=50, seed=1)
    epochs = [starts(samples, epoch * 99, 99) for epoch in range(4)]
    assert len({min(found) for found in epochs}) > 1
    assert len({tuple(np.argsort(found)) for found in epochs}) == 4


def test_with_weights_sources_take_turns_by_quota_and_each_has_epochs_of_its_own() -> None:
    samples = Samples([numbers(1010), numbers(210, 5000)], weights=[1, 3], seq_len=10, seed=3)
    assert samples.windows == (100, 20)
    found = starts(samples, 0, 400)
    blend = Blend([1, 3])
    assert [start >= 5000 for start in found] == [blend.place(i)[0] == 1 for i in range(400)]
    small = [start for start in found if start >= 5000]
    for epoch in range(15):  # 300 samples of 20 windows
        assert len({*small[epoch * 20 : epoch * 20 + 20]}) == 20
    large = [start for start in found if start < 5000]
    assert len({*large}) == 100


def test_sources_of_a_blend_have_orders_of_their_own() -> None:
    samples = Samples([numbers(1010), numbers(1010, 5000)], weights=[1, 1], seq_len=10, seed=3)
    found = starts(samples, 0, 200)
    first = [start for start in found if start < 5000]
    second = [start - 5000 for start in found if start >= 5000]
    assert first != second


def test_skipped_samples_stay_out_and_the_others_keep_their_order() -> None:
    whole = Samples([numbers(1000)], seq_len=10, seed=5).take(0, 50).ids
    left = Samples([numbers(1000)], seq_len=10, seed=5, skip=["7-9", "20-20"])
    kept = [i for i in range(50) if i not in (7, 8, 9, 20)]
    assert np.array_equal(left.take(0, 46).ids, whole[kept])
    assert [left.raw(i) for i in (6, 7, 16, 17)] == [6, 10, 19, 21]


@pytest.mark.parametrize("length", [40, 41, 59, 60])
def test_no_sample_reaches_over_the_end_of_the_text(length: int) -> None:
    for seed in range(40):
        samples = Samples([numbers(length)], seq_len=20, seed=seed)
        count = 3 * samples.windows[0]
        assert samples.take(0, count).ids.shape == (count, 21)


# --- documents -------------------------------------------------------------------------------------------------------


def test_segments_number_the_documents_of_a_sample() -> None:
    ends = [4, 4, 30, 31, 95, 260]  # one document is empty
    document = np.searchsorted([4, 30, 31, 95, 260], np.arange(260), side="right")
    samples = Samples([numbers(260, ends=ends)], seq_len=20, seed=2, isolate_documents=True)
    windows = samples.take(0, 60)
    assert windows.segments is not None
    assert windows.segments.dtype == np.int64
    found = Counter[int]()
    for ids, segments in zip(windows.ids, windows.segments, strict=True):
        of = document[ids]
        assert segments.tolist() == (of - of[0]).tolist()
        found[segments[-1]] += 1
    assert len(found) > 2  # samples with one, two and more documents were seen


def test_a_source_without_ends_is_one_document() -> None:
    windows = Samples([numbers(100)], seq_len=20, seed=2, isolate_documents=True).take(0, 4)
    assert windows.segments is not None
    assert not windows.segments.any()


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_source_without_two_sequences_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="books holds 39 tokens, less than two sequences of 20"):
        Samples([numbers(100), Source(np.arange(39), "books")], seq_len=20, seed=0)


def test_weights_and_sources_must_be_as_many() -> None:
    with pytest.raises(UsageError, match=r"data\.weights are 1 for 2 sources"):
        Samples([numbers(100), numbers(100)], weights=[1], seq_len=20, seed=0)


def test_no_source_and_no_sample_are_refused() -> None:
    with pytest.raises(UsageError, match="names no text"):
        Samples([], seq_len=20, seed=0)
    with pytest.raises(UsageError, match="take 1 or more"):
        Samples([numbers(100)], seq_len=20, seed=0).take(3, 0)
