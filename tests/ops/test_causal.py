"""Attention of whole sequences against plain softmax in float64, however queries and sequences are cut."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bloomery.ops import causal
from bloomery.ops.causal import attend_causal, causal_bands, hide_other_documents
from bloomery.ops.position import AttentionRule
from softmax import RULES, expect, random_qkv, softmax_attention

CPU = torch.device("cpu")
kinds = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def batch_of(count: int, length: int, rule: AttentionRule) -> list[Tensor]:
    """(B, T, H, D) and twice (B, T, K, D)."""
    return [torch.stack(x) for x in zip(*(random_qkv(length, rule, seed) for seed in range(count)), strict=True)]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "ROWS", 4)
    monkeypatch.setattr(causal, "SCORE_BYTES", 1)


@kinds
@pytest.mark.parametrize("length", [1, 70, 128, 300])
def test_causal_attention_equals_softmax_in_float64(rule: AttentionRule, length: int) -> None:
    inputs = batch_of(3, length, rule)
    out = attend_causal(*inputs, causal_bands(length, rule, CPU))
    for row, *one in zip(out, *inputs, strict=True):
        expect(row, softmax_attention(*(x.double().numpy() for x in one), 0, rule))


@kinds
@pytest.mark.parametrize("score_bytes", [1, 2 * 4 * 4 * 70 * 4, 2**30])
def test_how_many_sequences_are_computed_at_once_changes_nothing(
    rule: AttentionRule, score_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, bands = batch_of(5, 70, rule), causal_bands(70, rule, CPU)
    alone = torch.cat([attend_causal(*(x[i : i + 1] for x in inputs), bands) for i in range(5)])
    monkeypatch.setattr(causal, "SCORE_BYTES", score_bytes)
    torch.testing.assert_close(attend_causal(*inputs, bands), alone, rtol=1e-6, atol=1e-6)


@kinds
@pytest.mark.parametrize("length", [1, 6, 9])
@pytest.mark.usefixtures("small_pieces")
def test_causal_attention_has_the_gradient_of_softmax(rule: AttentionRule, length: int) -> None:
    inputs = [x.double().requires_grad_() for x in batch_of(2, length, rule)]
    bands = causal_bands(length, rule, CPU)
    assert torch.autograd.gradcheck(lambda q, k, v: attend_causal(q, k, v, bands), inputs, fast_mode=True)


@pytest.mark.usefixtures("small_pieces")
def test_documents_apart_equal_each_alone_and_so_do_their_gradients() -> None:
    rule = RULES["shared-alibi"]
    cuts = [(0, 3), (3, 10), (10, 11)]
    segments = torch.tensor([[n for n, (begin, end) in enumerate(cuts) for _ in range(begin, end)]] * 2)
    inputs = [x.double().requires_grad_() for x in batch_of(2, 11, rule)]
    slope = torch.randn(2, 11, 4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = attend_causal(*inputs, hide_other_documents(causal_bands(11, rule, CPU), segments))
    alone = torch.cat(
        [attend_causal(*(x[:, a:b] for x in inputs), causal_bands(b - a, rule, CPU)) for a, b in cuts], dim=1
    )
    torch.testing.assert_close(together, alone)
    for ours, theirs in zip(*(torch.autograd.grad(x, inputs, slope) for x in (together, alone)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rule", [RULES["shared-alibi"], RULES["plain"]], ids=["shared-alibi", "plain"])
@pytest.mark.usefixtures("small_pieces")
def test_what_is_dropped_on_the_way_there_is_dropped_on_the_way_back(rule: AttentionRule) -> None:
    inputs = [x.double().requires_grad_() for x in batch_of(3, 9, rule)]
    bands = causal_bands(9, rule, CPU)

    def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(7)
        return attend_causal(q, k, v, bands, 0.3)

    assert torch.autograd.gradcheck(dropped, inputs, fast_mode=True)


def test_dropout_drops_its_part_and_keeps_the_mean() -> None:
    """Of equal keys and values 1, a query's output is the share of its weights that was kept, made up for."""
    torch.manual_seed(0)
    query, key, value = torch.randn(8, 256, 4, 8), torch.zeros(8, 256, 4, 8), torch.ones(8, 256, 4, 8)
    out = attend_causal(query, key, value, causal_bands(256, AttentionRule(), CPU), 0.25)[..., 0]
    assert abs(out.mean().item() - 1) < 0.01
    first = out[:, 0]  # one weight each
    assert set(first.unique().tolist()) == {0, np.float32(1 / 0.75)}
    again = attend_causal(query, key, value, causal_bands(256, AttentionRule(), CPU), 0.25)[..., 0]
    assert not torch.equal(out, again)


def test_biases_of_all_bands_take_the_memory_of_one() -> None:
    bands = causal_bands(1000, RULES["alibi"], CPU)
    assert len(bands) == 8
    assert len({band.bias.untyped_storage().data_ptr() for band in bands}) == 1


def test_keys_that_no_query_sees_are_left_out() -> None:
    spans = [(band.queries, band.keys) for band in causal_bands(300, AttentionRule(window=9), CPU)]
    assert spans == [
        (slice(0, 44), slice(0, 44)),
        (slice(44, 172), slice(36, 172)),
        (slice(172, 300), slice(164, 300)),
    ]
