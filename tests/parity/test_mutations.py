"""Parity can fail: each classic mistake, made on purpose, must turn it red. Otherwise the tests prove nothing."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bloomery.families import reorders
from bloomery.model import attention, cache, decoder, mlp
from bloomery.ops import attention as ops
from bloomery.ops.position import AttentionRule
from drive import Row, assert_parity, blocks_for, chunked, load, new_cache
from tiny import Tiny

Patch = pytest.MonkeyPatch


def check(tiny: Tiny) -> None:
    """The parity check of the other files, in short: a prompt over three blocks, out of order, in two chunks."""
    model = load(tiny.path)
    ids = tiny.prompt(150)
    pool = new_cache(model, blocks_for(len(ids)))
    row = Row((2, 0, 1))
    pool.clear(list(row.blocks))
    assert_parity(chunked(model, pool, row, ids, 100), tiny.logits(ids))


def positions_off_by_one(patch: Patch) -> None:
    forward = decoder.Embedding.forward
    patch.setattr(decoder.Embedding, "forward", lambda self, ids, positions: forward(self, ids, positions + 1))


def key_written_one_place_late(patch: Patch) -> None:
    init = cache.CachedAttention.__init__

    def late(self: cache.CachedAttention, *args: object) -> None:
        init(self, *args)
        self.places = self.places.roll(-1)

    patch.setattr(cache.CachedAttention, "__init__", late)


def distances_rounded_to_pairs(patch: Patch) -> None:
    bias = ops.position_bias

    def coarse(queries: Tensor, keys: Tensor, rule: AttentionRule) -> Tensor:
        assert rule.slopes is not None
        return bias(queries, keys, rule) + (keys % 2) * rule.slopes[:, None, None]

    patch.setattr(ops, "position_bias", coarse)


def one_wrong_slope(patch: Patch) -> None:
    slopes = decoder.alibi_slopes
    patch.setattr(decoder, "alibi_slopes", lambda heads: [*slopes(heads)[:-1], slopes(heads)[-1] * 1.01])


def slopes_as_if_a_power_of_two(patch: Patch) -> None:
    patch.setattr(decoder, "alibi_slopes", lambda heads: [2 ** (-8 * i / heads) for i in range(1, heads + 1)])


def future_seen(patch: Patch) -> None:
    bias = ops.position_bias
    patch.setattr(ops, "position_bias", lambda *args: bias(*args).nan_to_num(neginf=0.0))


def own_token_not_seen(patch: Patch) -> None:
    bias = ops.position_bias

    def strict(queries: Tensor, keys: Tensor, rule: AttentionRule) -> Tensor:
        own = (keys == queries[..., None])[:, None] & (queries[..., None] > 0)[:, None]
        return bias(queries, keys, rule).masked_fill(own, -torch.inf)

    patch.setattr(ops, "position_bias", strict)


def swapped(first: int, second: int) -> Callable[[Patch], None]:
    def apply(patch: Patch) -> None:
        forward = attention.Attention.forward

        def swap(
            self: attention.Attention, x: Tensor, angles: attention.Angles | None, attend: attention.Attend
        ) -> Tensor:
            def other(layer: int, *qkv: Tensor) -> Tensor:
                parts = list(qkv)
                parts[first], parts[second] = parts[second], parts[first]
                return attend(layer, *parts)

            return forward(self, x, angles, other)

        patch.setattr(attention.Attention, "forward", swap)

    return apply


def scores_not_scaled(patch: Patch) -> None:
    patch.setattr(ops, "scaled_dot_product_attention", partial(ops.scaled_dot_product_attention, scale=1.0))


def embedding_norm_skipped(patch: Patch) -> None:
    patch.setattr(decoder.Embedding, "forward", lambda self, ids, positions: self.tokens(ids))


def last_norm_skipped(patch: Patch) -> None:
    def forward(self: decoder.Decoder, ids: Tensor, positions: Tensor, attend: attention.Attend) -> Tensor:
        x = self.embed(ids, positions)
        for block in self.blocks:
            x = block(x, None, attend)
        return x

    patch.setattr(decoder.Decoder, "forward", forward)


def norm_eps_not_read(patch: Patch) -> None:
    init = decoder.Decoder.__init__
    patch.setattr(decoder.Decoder, "__init__", lambda self, config: init(self, replace(config, norm_eps=1e-5)))


def gelu_exact(patch: Patch) -> None:
    patch.setitem(mlp.ACTIVATIONS, "gelu_tanh", functional.gelu)


def gelu_tanh(patch: Patch) -> None:
    patch.setitem(mlp.ACTIVATIONS, "gelu", partial(functional.gelu, approximate="tanh"))


def qkv_not_regrouped(patch: Patch) -> None:
    patch.setattr(reorders, "_split_fused", lambda x, config: x)


def head_tied_though_it_is_not(patch: Patch) -> None:
    logits = decoder.Decoder.logits

    def tied(self: decoder.Decoder, hidden: Tensor) -> Tensor:
        self.head.weight = self.embed.tokens.weight
        return logits(self, hidden)

    patch.setattr(decoder.Decoder, "logits", tied)


MUTATIONS = [
    ("gpt2-tanh", positions_off_by_one),
    ("gpt2-tanh", key_written_one_place_late),
    ("bloom-8-heads", key_written_one_place_late),
    ("bloom-8-heads", distances_rounded_to_pairs),
    ("bloom-8-heads", one_wrong_slope),
    ("bloom-6-heads", one_wrong_slope),
    ("bloom-7-heads", one_wrong_slope),
    ("bloom-6-heads", slopes_as_if_a_power_of_two),
    ("bloom-7-heads", slopes_as_if_a_power_of_two),
    ("bloom-8-heads", future_seen),
    ("gpt2-tanh", future_seen),
    ("bloom-8-heads", own_token_not_seen),
    ("gpt2-tanh", own_token_not_seen),
    ("bloom-6-heads", swapped(0, 1)),
    ("gpt2-tanh", swapped(0, 1)),
    ("bloom-6-heads", swapped(1, 2)),
    ("gpt2-tanh", swapped(1, 2)),
    ("bloom-6-heads", scores_not_scaled),
    ("gpt2-tanh", scores_not_scaled),
    ("bloom-6-heads", embedding_norm_skipped),
    ("gpt2-tanh", last_norm_skipped),
    ("bloom-7-heads", norm_eps_not_read),
    ("gpt2-tanh", norm_eps_not_read),
    ("bloom-6-heads", gelu_exact),
    ("gpt2-tanh", gelu_exact),
    ("gpt2-gelu", gelu_tanh),
    ("gpt2-tanh", qkv_not_regrouped),
    ("gpt2-relu-untied", head_tied_though_it_is_not),
]


@pytest.mark.parametrize(("name", "mutate"), MUTATIONS)
def test_mistake_turns_parity_red(
    tiny: Callable[[str], Tiny], name: str, mutate: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    check(tiny(name))
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="parity lost"):
        check(tiny(name))


def test_mistakes_in_swapped_order_are_no_mistakes(bloom: Tiny, monkeypatch: Patch) -> None:
    """The way in which they are made is not itself what fails: swapping a tensor with itself changes nothing."""
    swapped(1, 1)(monkeypatch)
    check(bloom)
