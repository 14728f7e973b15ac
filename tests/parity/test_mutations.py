"""Parity can fail: each classic mistake, made on purpose, must turn it red. Otherwise the tests prove nothing."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bloomery.families import FAMILIES, reorders
from bloomery.families.llama import LLAMA
from bloomery.model import attention, cache, decoder, mlp
from bloomery.ops import activation, native
from bloomery.ops import attention as ops
from bloomery.ops.attention import Span
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
    patch.setitem(activation._NUMBERS, "gelu_tanh", activation._NUMBERS["gelu"])


def gelu_tanh(patch: Patch) -> None:
    patch.setitem(activation._NUMBERS, "gelu", activation._NUMBERS["gelu_tanh"])


def qkv_not_regrouped(patch: Patch) -> None:
    patch.setattr(reorders, "_split_fused", lambda x, config: x)


def head_tied_though_it_is_not(patch: Patch) -> None:
    logits = decoder.Decoder.logits

    def tied(self: decoder.Decoder, hidden: Tensor) -> Tensor:
        self.head.weight = self.embed.tokens.weight
        return logits(self, hidden)

    patch.setattr(decoder.Decoder, "logits", tied)


def config_with(**changed: object) -> Callable[[Patch], None]:
    """As if these fields had not been read."""

    def apply(patch: Patch) -> None:
        init = decoder.Decoder.__init__
        patch.setattr(decoder.Decoder, "__init__", lambda self, config: init(self, replace(config, **changed)))

    return apply


def rotary_with(**changed: object) -> Callable[[Patch], None]:
    def apply(patch: Patch) -> None:
        init = decoder.Rotary.__init__
        patch.setattr(decoder.Rotary, "__init__", lambda self, config: init(self, replace(config, **changed)))

    return apply


def positions_of_angles_off_by_one(patch: Patch) -> None:
    """Every second token turned by one place too many: turning all of them changes nothing."""
    forward = decoder.Rotary.forward
    patch.setattr(decoder.Rotary, "forward", lambda self, places, dtype: forward(self, places + places % 2, dtype))


def rotary_pairs_side_by_side(patch: Patch) -> None:
    def interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        count = 2 * cos.shape[-1]
        x, cos, sin = x.flatten(1, 2), cos[:, None], sin[:, None]
        even, odd, rest = x[..., 0:count:2], x[..., 1:count:2], x[..., count:]
        return torch.cat((torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2), rest), -1)

    patch.setattr(attention, "rotate", interleaved)


def only_queries_turned(patch: Patch) -> None:
    rotate, calls = attention.rotate, iter(range(10**9))
    patch.setattr(attention, "rotate", lambda x, *angles: x.flatten(1, 2) if next(calls) % 2 else rotate(x, *angles))


def frequencies_rounded_to_bf16(patch: Patch) -> None:
    frequencies = decoder.rotary_frequencies
    patch.setattr(decoder, "rotary_frequencies", lambda *args: frequencies(*args).bfloat16().float())


def window_one_too_wide(patch: Patch) -> None:
    bias = ops.position_bias
    patch.setattr(ops, "position_bias", lambda q, k, rule: bias(q, k, replace(rule, window=rule.window + 1)))


def one_block_too_many_skipped(patch: Patch) -> None:
    group = ops._group

    def narrow(members: object, length: int, rule: AttentionRule, device: torch.device) -> ops.Group:
        assert rule.window is not None
        return group(members, length, replace(rule, window=max(1, rule.window - ops.BLOCK)), device)

    patch.setattr(ops, "_group", narrow)


def heads_dealt_round_in_turn(patch: Patch) -> None:
    """Queries 0, 2, 4 to the first key and 1, 3, 5 to the second."""
    attend = ops._attend

    def dealt(query: Tensor, key: Tensor, value: Tensor, *more: Any) -> Tensor:
        shared = query.shape[2] // key.shape[1]
        order = torch.arange(query.shape[2]).view(shared, -1).T.flatten()
        out = torch.empty_like(query)
        out[:, :, order] = attend(query[:, :, order], key, value, *more)
        return out

    patch.setattr(ops, "_attend", dealt)


def alibi_not_rounded(patch: Patch) -> None:
    bias = ops.position_bias

    def fine(queries: Tensor, keys: Tensor, rule: AttentionRule) -> Tensor:
        assert rule.slopes is not None
        exact = replace(rule, coarse_scale=None, slopes=rule.slopes * rule.coarse_scale)
        return bias(queries, keys, exact)

    patch.setattr(ops, "position_bias", fine)


def without_our_kernel(patch: Patch) -> None:
    patch.setattr(cache, "attends_natively", lambda x: False)


def planned_with(spans: Callable[[Span], Span], rule: Callable[[AttentionRule], AttentionRule]) -> Callable[..., None]:
    """As if our own kernel had been told something else."""

    def apply(patch: Patch) -> None:
        plan = cache.plan_step
        patch.setattr(
            cache,
            "plan_step",
            lambda given, its, *more: plan([spans(span) for span in given], rule(its), *more),
        )

    return apply


def as_it_is(x: Any) -> Any:
    return x


def our_scores_not_scaled(patch: Patch) -> None:
    attend = cache.attend_natively
    patch.setattr(cache, "attend_natively", lambda plan, places, q, *more: attend(plan, places, 2 * q, *more))


our_positions_one_too_many = planned_with(lambda span: span._replace(start=span.start + 1), as_it_is)
our_window_one_too_wide = planned_with(as_it_is, lambda rule: replace(rule, window=rule.window + 1))
our_alibi_not_rounded = planned_with(
    as_it_is, lambda rule: replace(rule, coarse_scale=None, slopes=rule.slopes * rule.coarse_scale)
)
our_slopes_turned_round = planned_with(as_it_is, lambda rule: replace(rule, slopes=-rule.slopes))


def mean_subtracted(patch: Patch) -> None:
    forward = decoder.RMSNorm.forward
    patch.setattr(decoder.RMSNorm, "forward", lambda self, x: forward(self, x - x.mean(-1, keepdim=True)))


def gate_and_up_swapped(patch: Patch) -> None:
    def forward(self: mlp.Mlp, x: Tensor) -> Tensor:
        assert self.gate is not None
        return self.down(mlp.activate(self.up(x), self.activation, times=self.gate(x)))

    patch.setattr(mlp.Mlp, "forward", forward)


def experts(choose: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> Callable[[Patch], None]:
    """Other weights or another choice, given all logits of the router."""

    def forward(self: mlp.Experts, x: Tensor) -> Tensor:
        weights, chosen = choose(self.router(x), self.per_token)
        every = torch.stack([expert(x) for expert in self.experts], 1)  # (N, experts, E)
        picked = every.gather(1, chosen[..., None].expand(-1, -1, x.shape[-1]))
        return (picked * weights[..., None]).sum(1)

    return lambda patch: patch.setattr(mlp.Experts, "forward", forward)


def weights_of_all_experts(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    odds, chosen = logits.softmax(-1).topk(count)
    return odds, chosen  # not made to sum to one


def equal_weights(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    chosen = logits.topk(count).indices
    return torch.full(chosen.shape, 1 / count), chosen


def the_best_expert_alone(logits: Tensor, _: int) -> tuple[Tensor, Tensor]:
    return torch.ones(len(logits), 1), logits.topk(1).indices


def the_weights_as_they_should_be(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    best, chosen = logits.topk(count)
    return best.softmax(-1), chosen


def qkv_one_after_the_other(patch: Patch) -> None:
    """The parts written as they come, not by key-value group. A Reorder holds its functions, so it is what changes."""
    (rule,) = [rule for rule in LLAMA.rules if rule.ours.endswith("attn.qkv.weight")]
    joined = rule.reorder._replace(to_ours=lambda parts, config: torch.cat(parts))
    rules = tuple(rule._replace(reorder=joined) if r is rule else r for r in LLAMA.rules)
    patch.setitem(FAMILIES, "llama", replace(LLAMA, rules=rules))


def head_bias_dropped(patch: Patch) -> None:
    patch.setattr(decoder.Decoder, "logits", lambda self, hidden: functional.linear(hidden, self.head.weight))


def second_norm_from_the_wrong_place(patch: Patch) -> None:
    """Parallel blocks whose feed-forward half reads what attention has already been added to."""

    def forward(self: decoder.Block, x: Tensor, angles: attention.Angles | None, attend: attention.Attend) -> Tensor:
        attended = self.attn(self.norm1(x), angles, attend)
        normed = self.norm1(x + attended) if self.residual == "parallel_one_norm" else self.norm2(x + attended)
        return x + attended + self.mlp(normed)

    patch.setattr(decoder.Block, "forward", forward)


def both_halves_at_once(patch: Patch) -> None:
    def forward(self: decoder.Block, x: Tensor, angles: attention.Angles | None, attend: attention.Attend) -> Tensor:
        return x + self.attn(self.norm1(x), angles, attend) + self.mlp(self.norm2(x))

    patch.setattr(decoder.Block, "forward", forward)


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
    ("llama-multi-head", rotary_pairs_side_by_side),
    ("llama-multi-head", only_queries_turned),
    ("llama-multi-head", frequencies_rounded_to_bf16),
    ("llama-multi-head", mean_subtracted),
    ("llama-multi-head", config_with(norm_eps=1e-6)),
    ("llama-multi-head", gate_and_up_swapped),
    ("llama-multi-head", config_with(activation="gelu")),
    ("llama-multi-head", positions_of_angles_off_by_one),
    ("llama-grouped-scaled", rotary_with(theta=1000.0)),
    ("llama-grouped-scaled", rotary_with(scaling="none")),
    ("llama-grouped-scaled", rotary_with(scaling="linear")),
    ("llama-grouped-scaled", rotary_with(original_max_seq_len=64)),
    ("llama-grouped-scaled", rotary_with(high_freq_factor=2.0)),
    ("llama-grouped-scaled", rotary_with(low_freq_factor=2.0)),
    ("llama-grouped-scaled", heads_dealt_round_in_turn),
    ("llama-grouped-scaled", qkv_one_after_the_other),
    ("llama-biased-linear", rotary_with(factor=1.0)),
    ("mistral-window", config_with(sliding_window=None)),
    ("mistral-window", window_one_too_wide),
    ("mistral-window", one_block_too_many_skipped),
    ("mixtral-2-of-4", experts(weights_of_all_experts)),
    ("mixtral-2-of-4", experts(equal_weights)),
    ("mixtral-2-of-4", experts(the_best_expert_alone)),
    ("falcon-40b-like", second_norm_from_the_wrong_place),
    ("falcon-7b-like", second_norm_from_the_wrong_place),
    ("falcon-40b-like", heads_dealt_round_in_turn),
    ("falcon-rw-like", alibi_not_rounded),
    ("falcon-rw-like", both_halves_at_once),
    ("phi-partial", rotary_with(dims=20)),
    ("phi-partial", head_bias_dropped),
    ("phi-grouped", heads_dealt_round_in_turn),
    ("starcoder-multi-head", swapped(1, 2)),
    ("starcoder-multi-query", gelu_exact),
]
OF_PYTORCHS_ATTENTION = {
    distances_rounded_to_pairs,
    future_seen,
    own_token_not_seen,
    scores_not_scaled,
    window_one_too_wide,
    one_block_too_many_skipped,
    heads_dealt_round_in_turn,
    alibi_not_rounded,
}
OF_OURS = [
    ("gpt2-tanh", our_scores_not_scaled),
    ("gpt2-tanh", our_positions_one_too_many),
    ("bloom-7-heads", our_positions_one_too_many),
    ("bloom-7-heads", our_slopes_turned_round),
    ("mistral-window", our_window_one_too_wide),
    ("falcon-rw-like", our_alibi_not_rounded),
]


@pytest.mark.parametrize(("name", "mutate"), MUTATIONS + OF_OURS)
def test_mistake_turns_parity_red(
    tiny: Callable[[str], Tiny], name: str, mutate: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    check(tiny(name))
    if (name, mutate) in OF_OURS and native.library() is None:
        pytest.skip("this build has no compiled library")
    if mutate in OF_PYTORCHS_ATTENTION:
        without_our_kernel(monkeypatch)
        check(tiny(name))
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="parity lost"):
        check(tiny(name))


def test_mistakes_in_swapped_order_are_no_mistakes(bloom: Tiny, monkeypatch: Patch) -> None:
    """The way in which they are made is not itself what fails: swapping a tensor with itself changes nothing."""
    swapped(1, 1)(monkeypatch)
    check(bloom)


def test_experts_computed_in_another_way_are_no_mistake(tiny: Callable[[str], Tiny], monkeypatch: Patch) -> None:
    """All of them, then the chosen, weighted by a softmax over their logits alone, which is the same."""
    experts(the_weights_as_they_should_be)(monkeypatch)
    check(tiny("mixtral-2-of-4"))
