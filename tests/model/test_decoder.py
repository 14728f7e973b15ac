"""What a decoder is made of, apart from its numbers (tests/parity)."""

from dataclasses import replace

import pytest
import torch

from bloomery.model.cache import CausalAttention, KVCache
from bloomery.model.config import DecoderConfig, RotaryConfig
from bloomery.model.decoder import Decoder
from bloomery.model.size import weights_read
from bloomery.ops.activation import activate
from bloomery.ops.attention import BLOCK

LEARNED = DecoderConfig(
    vocab_size=50,
    hidden_size=12,
    num_layers=2,
    num_heads=3,
    num_kv_heads=3,
    head_dim=4,
    ffn_size=20,
    max_seq_len=7,
    positions="learned",
)
ALIBI = replace(LEARNED, positions="alibi", embed_norm=True)
GROUPED = replace(
    LEARNED,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    positions="rotary",
    rotary=RotaryConfig(dims=4),
    norm="rms",
    activation="silu",
    gated_mlp=True,
    attn_bias=False,
    mlp_bias=False,
)
EXPERTS = replace(GROUPED, num_experts=3, experts_per_token=2, sliding_window=3)
PARALLEL = replace(GROUPED, residual="parallel", norm="layer", gated_mlp=False, head_bias=True)
CONFIGS = {
    "learned": LEARNED,
    "alibi": ALIBI,
    "coarse": replace(ALIBI, positions="alibi_coarse"),
    "grouped": GROUPED,
    "experts": EXPERTS,
    "parallel": PARALLEL,
    "one-norm": replace(PARALLEL, residual="parallel_one_norm"),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def random_decoder(config: DecoderConfig) -> Decoder:
    decoder = Decoder(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return decoder


def test_tied_head_is_the_embedding() -> None:
    decoder = Decoder(LEARNED)
    assert decoder.head.weight is decoder.embed.tokens.weight
    assert "head.weight" not in dict(decoder.named_parameters())


def test_untied_head_has_its_own_weight() -> None:
    decoder = Decoder(replace(LEARNED, tied_head=False))
    assert decoder.head.weight is not decoder.embed.tokens.weight


@configs
def test_only_learned_positions_have_weights(config: DecoderConfig) -> None:
    decoder = Decoder(config)
    learned = config.positions == "learned"
    assert (decoder.embed.positions is not None) == learned
    assert (decoder.attention_rule.slopes is not None) == config.positions.startswith("alibi")
    assert (decoder.rotary is not None) == (config.positions == "rotary")
    assert (decoder.embed.norm is None) != config.embed_norm


def test_every_field_of_the_config_shapes_the_decoder() -> None:
    decoder = Decoder(replace(ALIBI, norm_eps=1e-3, activation="relu"))
    assert decoder.embed.tokens.weight.shape == (50, 12)
    assert len(decoder.blocks) == 2
    block = decoder.blocks[1]
    assert block.attn.qkv.weight.shape == (36, 12)
    assert block.mlp.up.weight.shape == (20, 12)
    assert {module.eps for module in decoder.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-3}
    assert activate(torch.tensor(-1.0), block.mlp.activation) == 0


def test_every_new_field_shapes_the_decoder() -> None:
    shapes = {name: tuple(weight.shape) for name, weight in Decoder(EXPERTS).named_parameters()}
    assert shapes["blocks.1.attn.qkv.weight"] == ((4 + 2 * 2) * 6, 12)
    assert shapes["blocks.1.attn.out.weight"] == (12, 4 * 6)
    assert shapes["blocks.1.mlp.router.weight"] == (3, 12)
    assert shapes["blocks.1.mlp.experts.2.gate.weight"] == (20, 12)
    assert not [name for name in shapes if name.endswith("bias")]
    assert Decoder(EXPERTS).attention_rule.window == 3
    assert Decoder(EXPERTS).attention_rule.shared == 2
    both = {name for name, _ in Decoder(PARALLEL).named_parameters()}
    one = {name for name, _ in Decoder(replace(PARALLEL, residual="parallel_one_norm")).named_parameters()}
    assert both - one == {f"blocks.{i}.norm2.{kind}" for i in range(2) for kind in ("weight", "bias")}
    assert "head.bias" in one


def test_a_step_reads_as_many_experts_as_a_token_takes() -> None:
    decoder = Decoder(EXPERTS)
    expert = sum(weight.numel() for weight in decoder.blocks[0].mlp.experts[0].parameters())
    everything = sum(weight.numel() for weight in decoder.parameters())
    assert sum(weight.numel() for weight in weights_read(decoder)) == everything - 2 * expert


@configs
def test_logits_are_fp32_whatever_the_weights_are(config: DecoderConfig) -> None:
    decoder = random_decoder(config)
    attend = CausalAttention(1, 7, decoder.attention_rule, decoder.device)
    ids = torch.arange(7)
    expected = decoder.logits(decoder(ids, ids, attend))
    decoder = decoder.bfloat16()
    logits = decoder.logits(decoder(ids, ids, attend))
    assert logits.dtype == torch.float32
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.05 * expected.abs().max().item())


@configs
def test_every_weight_gets_a_gradient(config: DecoderConfig) -> None:
    decoder = random_decoder(replace(config, tied_head=False))
    attend = CausalAttention(2, 7, decoder.attention_rule, decoder.device)
    ids = torch.arange(14)
    decoder.logits(decoder(ids, ids % 7, attend)).logsumexp(-1).sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_cache_keeps_blocks_of_every_layer_in_the_weights_dtype() -> None:
    cache = KVCache(GROUPED, 5, torch.bfloat16, torch.device("cpu"))
    for pool in (cache.keys.numbers, cache.values.numbers):
        assert pool.shape == (2, 5, 2, BLOCK, 6)
        assert pool.dtype == torch.bfloat16
