"""Attention by our own kernel: softmax in float64, and the same bits whatever else is computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attending import (
    BF16,
    BLOCKS,
    F32,
    INT8,
    KINDS,
    LEVELS,
    NAN,
    SPANS,
    Kind,
    Pool,
    Text,
    near,
    rounded,
    started,
    whole,
)
from bloomery.ops import native
from bloomery.ops.attention import BLOCK, Span
from bloomery.ops.attention_native import attend_natively, plan_step
from bloomery.ops.native.calls import DTYPES

pytestmark = pytest.mark.skipif(native.library() is None, reason="this build has no compiled library")
levels = pytest.mark.parametrize("level", LEVELS, ids=[native.LEVELS[level] for level in LEVELS])
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
FORMS = {
    "fp32": (F32, F32),
    "bf16": (BF16, BF16),
    "kept-in-bf16": (F32, BF16),
    "kept-in-fp32": (BF16, F32),
    "kept-in-int8": (F32, INT8),
    "bf16-kept-in-int8": (BF16, INT8),
}
"""Dtypes of a step, and of what is kept."""
dtypes = pytest.mark.parametrize("dtypes", FORMS.values(), ids=FORMS)
kept_dtypes = pytest.mark.parametrize("kept", [F32, INT8], ids=["fp32", "int8"])


@levels
@kinds
@dtypes
def test_it_is_softmax_in_float64(kind: Kind, dtypes: tuple[torch.dtype, torch.dtype], level: int) -> None:
    kind = replace(kind, dtype=dtypes[0], kept=dtypes[1])
    for places in SPANS:
        spans = [Span(*place, blocks) for place, blocks in zip(places, BLOCKS, strict=False)]
        texts = [Text(span.start + span.length, kind, seed) for seed, span in enumerate(spans)]
        pool = Pool(kind)
        started(pool, texts, spans, level)
        for text, got, span in zip(texts, pool.step(texts, spans, level=level), spans, strict=True):
            near(got, text.expected()[span.start :])


@levels
@kinds
@dtypes
def test_whole_equals_chunked_equals_one_by_one_bitwise(
    kind: Kind, dtypes: tuple[torch.dtype, torch.dtype], level: int
) -> None:
    kind = replace(kind, dtype=dtypes[0], kept=dtypes[1])
    text = Text(139, kind)
    expected = whole(kind, text, level=level)
    for chunk in (1, 3, 50, 64):
        pool = Pool(kind)
        spans = [Span(start, min(chunk, 139 - start), (5, 1, 6)) for start in range(0, 139, chunk)]
        parts = [pool.step([text], [span], level=level)[0] for span in spans]
        assert torch.equal(torch.cat(parts), expected), chunk


@levels
@kinds
@pytest.mark.parametrize("kept", [BF16, INT8], ids=["bf16", "int8"])
def test_batched_equals_alone_bitwise(kind: Kind, kept: torch.dtype, level: int) -> None:
    kind = replace(kind, dtype=BF16, kept=kept)
    spans = [Span(100, 1, (7, 2)), Span(0, 70, (3, 10)), Span(60, 33, (8, 0)), Span(5, 1, (4,))]
    texts = [Text(span.start + span.length, kind, seed) for seed, span in enumerate(spans)]
    pool = Pool(kind)
    started(pool, texts, spans, level)
    for text, got, span in zip(texts, pool.step(texts, spans, level=level), spans, strict=True):
        assert torch.equal(got, whole(kind, text, level=level)[span.start :])


@levels
@kinds
@kept_dtypes
def test_threads_change_no_bit(kind: Kind, kept: torch.dtype, level: int) -> None:
    kind = replace(kind, kept=kept)
    text = Text(200, kind)
    one, two, three, many = (whole(kind, text, level=level, threads=threads) for threads in (1, 2, 3, 64))
    assert torch.equal(one, two)
    assert torch.equal(one, three)
    assert torch.equal(one, many)


@levels
@kinds
@pytest.mark.parametrize("part", ["query", "key", "value"])
@kept_dtypes
def test_what_is_not_finite_reaches_who_sees_it_and_nobody_else(
    kind: Kind, part: str, kept: torch.dtype, level: int
) -> None:
    """Later tokens of its text, as softmax has it; not those before it, and not another text."""
    kind = replace(kind, kept=kept)
    texts = [Text(90, kind, 0), Text(80, kind, 1)]
    spans = [Span(0, 90, (7, 2)), Span(0, 80, (3, 5))]
    alone = [whole(kind, text, level=level) for text in texts]
    for wrong in (NAN, torch.inf, -torch.inf):
        getattr(texts[0], part)[70] = wrong
        got = Pool(kind).step(texts, spans, level=level)
        assert torch.equal(got[1], alone[1])
        assert torch.equal(got[0][:70], alone[0][:70])
        assert torch.equal(got[0].isfinite(), texts[0].expected().isfinite())
        assert wrong == wrong or got[0][70].isnan().all()


@levels
def test_keys_infinitely_far_away_weigh_nothing(level: int) -> None:
    """-inf is a score like any other, also where a first block has no other."""
    kind = Kind(heads=1, kv_heads=1, size=1)
    text = Text(100, kind)
    text.query.fill_(1.0)
    text.key[:70] = -torch.inf
    got, expected = whole(kind, text, level=level), text.expected()
    assert got[:70].isnan().all()
    assert expected[:70].isnan().all()
    near(got[70:], expected[70:])


@levels
@pytest.mark.parametrize("kind", [KINDS["plain"], KINDS["window"], KINDS["odd"]], ids=["plain", "window", "odd"])
@kept_dtypes
def test_what_others_left_in_a_block_is_not_read(kind: Kind, kept: torch.dtype, level: int) -> None:
    kind = replace(kind, kept=kept)
    text, clean = Text(70, kind), Pool(kind)
    for tensor in (*clean.keys.tensors, *clean.values.tensors):
        tensor.zero_()
    expected = clean.step([text], [Span(0, 70, (1, 0))], level=level)[0]
    assert torch.equal(whole(kind, text, level=level), expected)


@levels
def test_blocks_that_have_left_the_window_are_not_read(level: int) -> None:
    """They may belong to somebody else by now: the table may say anything."""
    kind = Kind(window=BLOCK)
    text, pool = Text(3 * BLOCK, kind), Pool(kind)
    expected = whole(kind, text, level=level)
    pool.step([text], [Span(0, 3 * BLOCK - 1, (5, 6, 7))], level=level)
    got = pool.step([text], [Span(3 * BLOCK - 1, 1, (10**6, -(10**6), 7))], level=level)[0]
    assert torch.equal(got[0], expected[-1])


@levels
@kinds
def test_padding_is_finite_and_changes_nothing(kind: Kind, level: int) -> None:
    spans = [Span(0, 70, (7, 2), padding=30, reach=448), Span(60, 8, (3, 5), padding=9), Span(3, 1, (1,), reach=64)]
    texts = [Text(span.start + span.length, kind, seed) for seed, span in enumerate(spans)]
    pool = Pool(kind)
    started(pool, texts, spans, level)
    for text, got, span in zip(texts, pool.step(texts, spans, level=level), spans, strict=True):
        assert torch.equal(got, whole(kind, text, level=level)[span.start :])


@dtypes
def test_new_keys_and_values_are_kept_where_they_belong_and_nowhere_else(
    dtypes: tuple[torch.dtype, torch.dtype],
) -> None:
    kind = Kind(heads=6, kv_heads=3, size=21, dtype=dtypes[0], kept=dtypes[1])
    text, pool = Text(80, kind), Pool(kind)
    pool.step([text], [Span(0, 80, (4, 1))])
    places = torch.tensor([*range(4 * BLOCK, 5 * BLOCK), *range(BLOCK, BLOCK + 16)])
    for kept, x in ((pool.keys, text.key), (pool.values, text.value)):
        expected = map(torch.from_numpy, rounded(x)) if kind.kept == INT8 else (x.to(kind.kept),)
        for cached, now in zip(kept.tensors, expected, strict=True):
            before = torch.full_like(cached, NAN if cached.is_floating_point() else 77)
            changed = before.transpose(1, 2).flatten(0, 1).index_copy(0, places, now)  # by places
            assert torch.equal(cached.transpose(1, 2).flatten(0, 1).nan_to_num(99), changed.nan_to_num(99))


def test_parts_of_a_fused_projection_are_taken_as_they_lie() -> None:
    kind = Kind(heads=4, kv_heads=4, size=24)
    text = Text(50, kind)
    fused = torch.stack((text.query, text.key, text.value), 2)  # (T, heads, 3, D)
    expected = whole(kind, text)
    text.query, text.key, text.value = fused.unbind(2)
    assert not text.query.is_contiguous()
    pool = Pool(kind)
    plan = plan_step([Span(0, 50, (2,))], kind.rule, 4, 2)
    places = torch.arange(2 * BLOCK, 2 * BLOCK + 50)
    assert torch.equal(
        attend_natively(plan, places, text.query, text.key, text.value, pool.keys, pool.values), expected
    )


def test_a_step_without_tokens_is_no_mistake() -> None:
    assert whole(Kind(), Text(0, Kind())).shape == (0, 4, 64)
    texts = [Text(0, Kind()), Text(3, Kind())]
    none, three = Pool(Kind()).step(texts, [Span(0, 0, ()), Span(0, 3, (1,))])
    assert none.shape == (0, 4, 64)
    assert torch.equal(three, whole(Kind(), texts[1]))


def test_half_precision_is_computed_in_fp32() -> None:
    kind = Kind(dtype=torch.float16)
    text = Text(30, kind)
    assert torch.float16 not in DTYPES
    got = whole(kind, text)
    assert got.dtype == torch.float16
    np.testing.assert_allclose(got.double().numpy(), text.expected().numpy(), rtol=2**-10, atol=1e-6)
