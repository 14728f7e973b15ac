"""Attention by our own kernel: softmax in float64, and the same bits whatever else is computed."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bloomery.ops import native
from bloomery.ops.attention import BLOCK, Span
from bloomery.ops.attention_native import attend_natively, plan_step
from bloomery.ops.native.calls import DTYPES
from bloomery.ops.position import AttentionRule, position_bias

pytestmark = pytest.mark.skipif(native.library() is None, reason="this build has no compiled library")
LEVELS = [*range(0 if native.library() is None else native.level() + 1)]
levels = pytest.mark.parametrize("level", LEVELS, ids=[native.LEVELS[level] for level in LEVELS])
F32, BF16 = torch.float32, torch.bfloat16
NAN = torch.nan


@dataclass(frozen=True)
class Kind:
    """Heads of queries and of keys, their size, what is seen, and dtypes of a step and of the blocks."""

    heads: int = 4
    kv_heads: int = 4
    size: int = 64
    window: int | None = None
    alibi: str = ""
    dtype: torch.dtype = F32
    kept: torch.dtype = F32

    @property
    def rule(self) -> AttentionRule:
        slopes = torch.logspace(-1, -3, self.heads) if self.alibi else None
        coarse = 0.3 if self.alibi == "coarse" else None
        return AttentionRule(self.heads // self.kv_heads, slopes, coarse, self.window)


KINDS = {
    "plain": Kind(),
    "shared": Kind(heads=12, kv_heads=4, size=80),
    "all-share-one": Kind(heads=7, kv_heads=1, size=20),
    "alibi": Kind(size=4, alibi="fine"),
    "alibi-coarse": Kind(heads=6, kv_heads=2, size=65, alibi="coarse"),
    "window": Kind(size=8, window=9),
    "window-shared": Kind(heads=8, kv_heads=2, size=128, window=70),
    "window-of-itself": Kind(size=3, window=1),
    "one": Kind(heads=1, kv_heads=1, size=1),
    "odd": Kind(heads=3, kv_heads=3, size=37, alibi="fine", window=64),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
dtypes = pytest.mark.parametrize(
    "dtypes", [(F32, F32), (BF16, BF16), (F32, BF16), (BF16, F32)], ids=["fp32", "bf16", "kept-in-bf16", "kept-in-fp32"]
)


class Text:
    """Queries, keys and values of so many tokens."""

    def __init__(self, tokens: int, kind: Kind, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.kind = kind
        self.query, self.key, self.value = (
            torch.randn(tokens, heads, kind.size, generator=generator).to(kind.dtype)
            for heads in (kind.heads, kind.kv_heads, kind.kv_heads)
        )

    def expected(self) -> Tensor:
        """(T, H, D) in float64: softmax over those of the kept keys that a query sees, and nothing else."""
        rule, kept, size = self.kind.rule, self.kind.kept, self.kind.size
        q, k, v = (x.double() for x in (self.query, self.key.to(kept), self.value.to(kept)))
        k, v = (x.repeat_interleave(rule.shared, 1) for x in (k, v))
        out = torch.empty_like(q)
        for place in range(len(q)):
            seen = torch.arange(max(0, place + 1 - (rule.window or place + 1)), place + 1)
            bias = position_bias(torch.tensor([[place]]), seen, replace(rule, shared=1))[
                0, :, 0
            ].double()  # (H or 1, S)
            scores = torch.einsum("hd,shd->hs", q[place], k[seen]) / size**0.5 + bias
            out[place] = torch.einsum("hs,shd->hd", scores.softmax(-1), v[seen])
        return out


class Pool:
    """Blocks that begin as NaN: nothing clears them here."""

    def __init__(self, kind: Kind, blocks: int = 12) -> None:
        self.kind = kind
        self.keys, self.values = torch.full((2, blocks, BLOCK, kind.kv_heads, kind.size), NAN, dtype=kind.kept)

    def step(self, texts: list[Text], spans: list[Span], *, level: int | None = None, threads: int = 2) -> list[Tensor]:
        """The next tokens of each text, as the spans say; padding is NaN and goes to the last block."""
        parts: list[list[Tensor]] = [[], [], []]
        places: list[int] = []
        for text, span in zip(texts, spans, strict=True):
            own = slice(span.start, span.start + span.length)
            for part, x in zip(parts, (text.query, text.key, text.value), strict=True):
                part += [x[own], torch.full((span.padding, *x.shape[1:]), NAN, dtype=x.dtype)]
            places += [span.blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(own.start, own.stop)]
            places += [(len(self.keys) - 1) * BLOCK] * span.padding
        plan = plan_step(spans, self.kind.rule, self.kind.kv_heads, threads)
        step = [torch.cat(part) for part in parts]
        out = attend_natively(plan, torch.tensor(places), *step, self.keys, self.values, level=level, threads=threads)
        offset = 0
        for span in spans:
            offset += span.length + span.padding
            assert out[offset - span.padding : offset].isfinite().all()
        return list(out.split([n for span in spans for n in (span.length, span.padding)]))[::2]


def near(actual: Tensor, expected: Tensor) -> None:
    tolerance = {F32: (1e-5, 2e-6), BF16: (2**-8, 1e-6)}[actual.dtype]  # half a unit of bf16's last place
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance[0], atol=tolerance[1])


BLOCKS = [(7, 2, 9), (3, 10, 5), (8, 0, 4)]
SPANS = [[(0, 1)], [(63, 1), (64, 1), (127, 1)], [(0, 150), (149, 1), (37, 40)]]


def started(pool: Pool, texts: list[Text], spans: list[Span], level: int | None = None) -> None:
    """What comes before the spans has been run."""
    before = [Span(0, span.start, span.blocks) for span in spans]
    pool.step(texts, before, level=level)


def whole(kind: Kind, text: Text, blocks: tuple[int, ...] = (1, 2, 0, 3), **how: int) -> Tensor:
    return Pool(kind).step([text], [Span(0, len(text.query), blocks)], **how)[0]


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
def test_batched_equals_alone_bitwise(kind: Kind, level: int) -> None:
    kind = replace(kind, dtype=BF16, kept=BF16)
    spans = [Span(100, 1, (7, 2)), Span(0, 70, (3, 10)), Span(60, 33, (8, 0)), Span(5, 1, (4,))]
    texts = [Text(span.start + span.length, kind, seed) for seed, span in enumerate(spans)]
    pool = Pool(kind)
    started(pool, texts, spans, level)
    for text, got, span in zip(texts, pool.step(texts, spans, level=level), spans, strict=True):
        assert torch.equal(got, whole(kind, text, level=level)[span.start :])


@levels
@kinds
def test_threads_change_no_bit(kind: Kind, level: int) -> None:
    text = Text(200, kind)
    one, two, three, many = (whole(kind, text, level=level, threads=threads) for threads in (1, 2, 3, 64))
    assert torch.equal(one, two)
    assert torch.equal(one, three)
    assert torch.equal(one, many)


@levels
@kinds
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_what_is_not_finite_reaches_who_sees_it_and_nobody_else(kind: Kind, part: str, level: int) -> None:
    """Later tokens of its text, as softmax has it; not those before it, and not another text."""
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
def test_what_others_left_in_a_block_is_not_read(kind: Kind, level: int) -> None:
    text, clean = Text(70, kind), Pool(kind)
    clean.keys.zero_()
    clean.values.zero_()
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
    for cached, x in ((pool.keys, text.key), (pool.values, text.value)):
        assert torch.equal(cached[[4, 1]].flatten(0, 1)[:80], x.to(kind.kept))
        cached[[4, 1]] = cached[[4, 1]].flatten(0, 1).index_fill(0, torch.arange(80), NAN).unflatten(0, (2, BLOCK))
        assert cached.isnan().all()


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
