"""Attention over blocks and its bias against plain softmax in float64; how spans become groups."""

import numpy as np
import pytest
import torch

from bloomery.ops.attention import BLOCK, Span, attend_blocks, group_spans
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
    pool = torch.full((2, 9, BLOCK, heads, 8), torch.nan)
    tables = [(7, 2), (3, 5), (8, 0)]
    queries, expected, work = [], [], []
    for index, (start, length) in enumerate(spans):
        blocks, end = tables[index], start + length
        query, key, value = random_qkv(end, rule, index)
        for cached, x in zip(pool, (key, value), strict=True):
            whole = torch.zeros(2 * BLOCK, heads, 8)
            whole[:end] = x
            cached[list(blocks)] = whole.unflatten(0, (2, BLOCK))
        queries.append(query[start:])
        expected.append(softmax_attention(*(x.double().numpy() for x in (query[start:], key, value)), start, rule))
        work.append(Span(start, length, blocks))
    out = attend_blocks(torch.cat(queries), *pool, group_spans(work, rule, CPU, together=together))
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
