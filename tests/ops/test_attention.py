"""Attention over blocks and its bias against plain softmax in float64; how spans become groups."""

import numpy as np
import pytest
import torch

from bloomery.ops.attention import BLOCK, Span, attend_blocks, group_spans
from bloomery.ops.kept import Kept
from bloomery.ops.position import AttentionRule, position_bias
from softmax import HEADS, RULES, expect, random_qkv, softmax_attention

CPU = torch.device("cpu")
kinds = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


@kinds
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    "spans", [[(0, 70)], [(69, 1)], [(127, 1)], [(3, 1), (64, 1), (127, 1)], [(0, 5), (60, 8), (100, 5)]]
)
def test_block_attention_equals_softmax_in_float64(
    rule: AttentionRule, spans: list[tuple[int, int]], together: bool
) -> None:
    heads = HEADS // rule.shared
    pool = torch.full((2, 9, heads, BLOCK, 8), torch.nan)
    tables = [(7, 2), (3, 5), (8, 0)]
    queries, expected, work = [], [], []
    for index, (start, length) in enumerate(spans):
        blocks, end = tables[index], start + length
        query, key, value = random_qkv(end, rule, index)
        for cached, x in zip(pool, (key, value), strict=True):
            whole = torch.zeros(2 * BLOCK, heads, 8)
            whole[:end] = x
            cached[list(blocks)] = whole.unflatten(0, (2, BLOCK)).transpose(1, 2)
        queries.append(query[start:])
        expected.append(softmax_attention(*(x.double().numpy() for x in (query[start:], key, value)), start, rule))
        work.append(Span(start, length, blocks))
    out = attend_blocks(torch.cat(queries), *map(Kept, pool), group_spans(work, rule, CPU, together=together))
    expect(out, np.concatenate(expected))


def test_blocks_that_have_left_the_window_are_not_read() -> None:
    """They may belong to somebody else by now, whatever is in them."""
    rule = AttentionRule(window=BLOCK)

    def blocks(start: int) -> object:
        return group_spans([Span(start, 1, (5, 6, 7))], rule, CPU, together=False)[0].blocks

    assert blocks(2 * BLOCK - 2) == slice(5, 7)
    assert blocks(2 * BLOCK - 1) == slice(6, 7)  # the window is exactly the second block
    assert blocks(2 * BLOCK) == slice(6, 8)


def test_bias_is_slope_times_distance_and_hides_the_future() -> None:
    bias = position_bias(torch.tensor([[2, 3], [0, 1]]), torch.arange(5), AttentionRule(slopes=torch.tensor([0.5])))
    hidden = -torch.inf
    assert bias[:, 0].tolist() == [
        [[-1.0, -0.5, 0.0, hidden, hidden], [-1.5, -1.0, -0.5, 0.0, hidden]],
        [[0.0, hidden, hidden, hidden, hidden], [-0.5, 0.0, hidden, hidden, hidden]],
    ]
    assert bias.dtype == torch.float32


def test_spans_of_one_length_form_one_group() -> None:
    spans = [Span(0, 3, (0,)), Span(70, 1, (1, 2)), Span(5, 3, (3,)), Span(9, 1, (4,))]
    groups = group_spans(spans, AttentionRule(), CPU, together=True)
    assert [group.tokens.tolist() for group in groups] == [[0, 1, 2, 4, 5, 6], [3, 7]]


def test_shorter_row_repeats_a_block_of_its_own() -> None:
    (group,) = group_spans([Span(150, 1, (5, 6, 7)), Span(9, 1, (4, 8))], AttentionRule(), CPU, together=True)
    assert isinstance(group.blocks, torch.Tensor)
    assert set(group.blocks[1].tolist()) <= {4, 8}
    assert group.blocks[0].tolist() == [5, 6, 7]


def test_consecutive_blocks_are_not_gathered() -> None:
    def blocks(table: tuple[int, ...]) -> object:
        return group_spans([Span(130, 1, table)], AttentionRule(), CPU, together=True)[0].blocks

    assert blocks((4, 5, 6)) == slice(4, 7)
    assert blocks((4, 5, 6, 0)) == slice(4, 7)  # what lies beyond the text does not matter
    assert isinstance(blocks((4, 6, 5)), torch.Tensor)


def block_attention(
    rule: AttentionRule, spans: list[Span], *, together: bool, softmax: torch.dtype | None = None
) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """What each span's own tokens get, and what float64 says; all that is nobody's is NaN, in the queries too."""
    heads = HEADS // rule.shared
    pool = torch.full((2, 9, heads, BLOCK, 8), torch.nan)
    queries, expected = [], []
    for index, span in enumerate(spans):
        query, key, value = random_qkv(span.start + span.length, rule, index)
        for cached, x in zip(pool, (key, value), strict=True):
            whole = torch.zeros(len(span.blocks) * BLOCK, heads, 8)
            whole[: len(x)] = x
            cached[list(span.blocks)] = whole.unflatten(0, (-1, BLOCK)).transpose(1, 2)
        expected.append(
            softmax_attention(*(x.double().numpy() for x in (query[span.start :], key, value)), span.start, rule)
        )
        queries += [query[span.start :], torch.full((span.padding, HEADS, 8), torch.nan)]
    out = attend_blocks(torch.cat(queries), *map(Kept, pool), group_spans(spans, rule, CPU, together=together), softmax)
    sizes = [size for span in spans for size in (span.length, span.padding)]
    return list(out.split(sizes))[::2], expected


@kinds
@pytest.mark.parametrize("together", [True, False])
def test_padding_and_positions_read_in_vain_change_nothing(rule: AttentionRule, together: bool) -> None:
    spans = [
        Span(0, 70, (7, 2), padding=30, reach=448),
        Span(60, 8, (3, 5), padding=92, reach=128),
        Span(100, 5, (8, 0), padding=95, reach=300),
        Span(3, 1, (1,), reach=448),
    ]
    for got, expected in zip(*block_attention(rule, spans, together=together), strict=True):
        expect(got, expected)


@pytest.mark.parametrize("window", [None, 20])
def test_padding_sees_a_key_however_long_it_is(window: int | None) -> None:
    """A softmax over nothing is NaN, which experts would be chosen by."""
    (group,) = group_spans([Span(5, 2, (0,), padding=500, reach=64)], AttentionRule(window=window), CPU, together=True)
    assert group.bias.shape == (1, 1, 502, 64)
    assert (group.bias == 0).any(-1).all()


@pytest.mark.parametrize("rule", [AttentionRule(), AttentionRule(window=70)])
def test_padded_spans_have_one_shape_wherever_they_stand(rule: AttentionRule) -> None:
    shapes = {
        group_spans([Span(start, length, (5, 6, 7), 32 - length, 192)], rule, CPU, together=False)[0].bias.shape
        for start, length in [(0, 3), (63, 2), (70, 32), (150, 20)]
    }
    assert shapes == {(1, 1, 32, 192)}


@kinds
def test_a_softmax_in_float32_equals_the_fused_one_and_in_bfloat16_is_near(rule: AttentionRule) -> None:
    spans = [Span(3, 40, (4,)), Span(0, 70, (7, 2)), Span(99, 1, (3, 5))]
    for got, expected in zip(*block_attention(rule, spans, together=False, softmax=torch.float32), strict=True):
        expect(got, expected)
    for got, expected in zip(*block_attention(rule, spans, together=False, softmax=torch.bfloat16), strict=True):
        off = np.abs(got.numpy() - expected).max()
        assert 2**-12 < off < 2**-3  # 8 bits of a number, and not more


def test_a_softmax_in_bfloat16_is_torchs_own() -> None:
    query, key, value = random_qkv(40, AttentionRule(), 0)
    keys, values = (x.new_zeros(1, HEADS, BLOCK, 8) for x in (key, value))
    keys[0, :, :40], values[0, :, :40] = key.transpose(0, 1), value.transpose(0, 1)
    groups = group_spans([Span(39, 1, (0,))], AttentionRule(), CPU, together=False)
    got = attend_blocks(query[39:], Kept(keys), Kept(values), groups, torch.bfloat16)
    scores = torch.einsum("hd,khd->hk", query[39].bfloat16() / 8**0.5, key.bfloat16())
    weights = torch.softmax(scores, -1, dtype=torch.bfloat16).float()
    torch.testing.assert_close(got[0], torch.einsum("hk,khd->hd", weights, value), rtol=1e-2, atol=1e-2)
