"""What the ranks compute with their portions adds up to what one computes with the whole; in float64 with numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bloomery.errors import UsageError
from bloomery.model.config import DecoderConfig
from bloomery.model.layout import SPLIT, check_tp, cut_of, shapes, split_of

Array = NDArray[np.float64]

PLAIN = DecoderConfig(
    vocab_size=50,
    hidden_size=24,
    num_layers=2,
    num_heads=16,
    num_kv_heads=16,
    head_dim=3,
    ffn_size=32,
    max_seq_len=8,
    positions="learned",
    embed_norm=True,
    gated_mlp=True,
    num_experts=3,
    experts_per_token=2,
    head_bias=True,
    tied_head=False,
)
KINDS = {"multi-head": 16, "four groups": 4, "two groups": 2, "multi-query": 1}
kinds = pytest.mark.parametrize("config", [replace(PLAIN, num_kv_heads=n) for n in KINDS.values()], ids=KINDS)
ranks = pytest.mark.parametrize("tp", [1, 2, 4, 8, 16])


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def taken(name: str, whole: Array, config: DecoderConfig, tp: int, rank: int) -> Array:
    cut = cut_of(name, config, tp, rank)
    assert cut is not None
    part = cut.take(torch.from_numpy(whole)).numpy()
    assert part.shape == cut.shape(whole.shape)
    return part


def heads_of(fused: Array, groups: int, config: DecoderConfig) -> tuple[Array, Array, Array]:
    """(N, rows) -> queries (N, heads, D), keys and values (N, groups, D)."""
    apart = fused.reshape(len(fused), groups, -1, config.head_dim)
    return apart[:, :, :-2].reshape(len(fused), -1, config.head_dim), apart[:, :, -2], apart[:, :, -1]


def attended(query: Array, key: Array, value: Array) -> Array:
    """Attention of all to all, each head of keys and values repeated for its queries; (N, heads * D)."""
    shared = query.shape[1] // key.shape[1]
    scores = np.einsum("nhd,mhd->hnm", query, key.repeat(shared, axis=1))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hnm,mhd->nhd", weights, value.repeat(shared, axis=1)).reshape(len(query), -1)


@kinds
@ranks
def test_portions_of_attention_add_up_to_the_whole(config: DecoderConfig, tp: int) -> None:
    width = config.num_heads * config.head_dim
    rows = width + 2 * config.num_kv_heads * config.head_dim
    x, qkv, bias = random(5, config.hidden_size), random(rows, config.hidden_size, seed=1), random(rows, seed=2)
    out, added = random(config.hidden_size, width, seed=3), random(config.hidden_size, seed=4)
    query, key, value = heads_of(x @ qkv.T + bias, config.num_kv_heads, config)
    whole = attended(query, key, value) @ out.T + added

    total = added  # whole on each rank, added once
    for rank in range(tp):
        mine, my_bias = (taken(f"blocks.1.attn.qkv.{leaf}", w, config, tp, rank) for leaf, w in _named(qkv, bias))
        columns = taken("blocks.1.attn.out.weight", out, config, tp, rank)
        my_query, my_key, my_value = heads_of(x @ mine.T + my_bias, max(1, config.num_kv_heads // tp), config)
        count = config.num_heads // tp
        first = rank * count
        np.testing.assert_allclose(my_query, query[:, first : first + count], rtol=1e-12)
        groups = sorted({head * config.num_kv_heads // config.num_heads for head in range(first, first + count)})
        np.testing.assert_allclose(my_key, key[:, groups], rtol=1e-12)
        np.testing.assert_allclose(my_value, value[:, groups], rtol=1e-12)
        total = total + attended(my_query, my_key, my_value) @ columns.T
    np.testing.assert_allclose(total, whole, rtol=1e-9)
    assert split_of("blocks.1.attn.out.bias") is None


def _named(weight: Array, bias: Array) -> list[tuple[str, Array]]:
    return [("weight", weight), ("bias", bias)]


@pytest.mark.parametrize("place", ["mlp", "mlp.experts.2"])
@ranks
def test_portions_of_a_feed_forward_add_up_to_the_whole(place: str, tp: int) -> None:
    x, names = random(5, PLAIN.hidden_size), ("gate", "up")
    inward = {name: random(PLAIN.ffn_size, PLAIN.hidden_size, seed=seed) for seed, name in enumerate(names)}
    biases = {name: random(PLAIN.ffn_size, seed=seed + 5) for seed, name in enumerate(names)}
    down, added = random(PLAIN.hidden_size, PLAIN.ffn_size, seed=9), random(PLAIN.hidden_size, seed=10)
    gate, up = (x @ inward[name].T + biases[name] for name in names)
    whole = (np.tanh(gate) * up) @ down.T + added

    total = added
    for rank in range(tp):
        gate, up = (
            x @ taken(f"blocks.0.{place}.{name}.weight", inward[name], PLAIN, tp, rank).T
            + taken(f"blocks.0.{place}.{name}.bias", biases[name], PLAIN, tp, rank)
            for name in names
        )
        total = total + (np.tanh(gate) * up) @ taken(f"blocks.0.{place}.down.weight", down, PLAIN, tp, rank).T
    np.testing.assert_allclose(total, whole, rtol=1e-9)
    assert split_of(f"blocks.0.{place}.down.bias") is None


@pytest.mark.parametrize("name", ["embed.tokens.weight", "head.weight", "head.bias"])
@pytest.mark.parametrize("vocab", [1, 17, 50, 64])
@ranks
def test_vocabulary_is_cut_as_torch_cuts_it(name: str, vocab: int, tp: int) -> None:
    config = replace(PLAIN, vocab_size=vocab)
    whole = random(vocab) if name.endswith("bias") else random(vocab, 3)
    chunks = [chunk.numpy() for chunk in torch.chunk(torch.from_numpy(whole), tp)]
    chunks += [whole[:0]] * (tp - len(chunks))
    for rank, chunk in enumerate(chunks):
        np.testing.assert_array_equal(taken(name, whole, config, tp, rank), chunk)


@kinds
@ranks
def test_every_index_is_on_a_rank_and_only_shared_keys_and_values_on_several(config: DecoderConfig, tp: int) -> None:
    for name, tensor in shapes(config).items():
        cuts = [cut_of(name, config, tp, rank) for rank in range(tp)]
        if None in cuts:
            assert not any(cuts)
            continue
        rows = [index for cut in cuts if cut is not None for part in cut.ranges for index in part]
        size = tensor.shape[cuts[0].dim]  # type: ignore[union-attr]
        assert set(rows) == set(range(size)), name
        if "qkv" not in name or tp <= config.num_kv_heads:
            assert rows == list(range(size)), name
        else:
            copies = tp // config.num_kv_heads
            assert len(rows) == size + 2 * config.num_kv_heads * config.head_dim * (copies - 1), name


@kinds
@ranks
def test_one_range_a_rank_unless_keys_are_shared_by_ranks(config: DecoderConfig, tp: int) -> None:
    for name in shapes(config):
        cut = cut_of(name, config, tp, tp - 1)
        shared = "qkv" in name and tp > config.num_kv_heads
        assert cut is None or len(cut.ranges) == (3 if shared else 1), name


def test_the_table_has_a_row_for_every_parameter_and_no_other() -> None:
    one = replace(PLAIN, num_experts=1, experts_per_token=1)
    names = [*shapes(PLAIN), *shapes(one)]
    for name in names:
        split_of(name)
    endings = {row for row in SPLIT if any(name.endswith(row) for name in names)}
    assert endings == set(SPLIT)


def test_a_view_is_taken_where_one_range_is_kept() -> None:
    whole = torch.arange(48.0).view(8, 6)
    for name in ("blocks.0.attn.out.weight", "blocks.0.mlp.up.weight"):
        config = replace(PLAIN, num_heads=2, num_kv_heads=2, head_dim=3, hidden_size=8, ffn_size=8)
        cut = cut_of(name, config, 2, 1)
        assert cut is not None
        assert cut.take(whole).untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("change", "tp", "words"),
    [
        ({}, 0, "at least one rank"),
        ({}, -2, "at least one rank"),
        ({}, 3, "16 heads"),
        ({}, 32, "16 heads"),
        ({"num_heads": 12, "num_kv_heads": 4}, 3, "4 heads of keys and values"),
        ({"num_heads": 12, "num_kv_heads": 4}, 6, "4 heads of keys and values"),
        ({"ffn_size": 36}, 8, "feed-forward size of 36"),
    ],
)
def test_ranks_that_cannot_be_are_refused_in_one_line(change: dict[str, int], tp: int, words: str) -> None:
    config = replace(PLAIN, **change)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=words) as caught:
        check_tp(config, tp)
    message = str(caught.value)
    assert f"tp is {tp}" in message
    assert "\n" not in message
    for possible in message.rpartition("give one of ")[2].split(", "):
        check_tp(config, int(possible))
