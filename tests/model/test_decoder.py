"""What a decoder is made of, apart from its numbers (tests/parity)."""

from dataclasses import replace

import pytest
import torch

from bloomery.model.cache import CausalAttention, KVCache
from bloomery.model.config import DecoderConfig
from bloomery.model.decoder import Decoder
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


@pytest.mark.parametrize("config", [LEARNED, ALIBI], ids=["learned", "alibi"])
def test_only_learned_positions_have_weights(config: DecoderConfig) -> None:
    decoder = Decoder(config)
    learned = config.positions == "learned"
    assert (decoder.embed.positions is not None) == learned
    assert (decoder.attention_rule.slopes is None) == learned
    assert (decoder.embed.norm is None) != config.embed_norm


def test_every_field_of_the_config_shapes_the_decoder() -> None:
    decoder = Decoder(replace(ALIBI, norm_eps=1e-3, activation="relu"))
    assert decoder.embed.tokens.weight.shape == (50, 12)
    assert len(decoder.blocks) == 2
    block = decoder.blocks[1]
    assert block.attn.qkv.weight.shape == (36, 12)
    assert block.mlp.up.weight.shape == (20, 12)
    assert {module.eps for module in decoder.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-3}
    assert block.mlp.activation(torch.tensor(-1.0)) == 0


@pytest.mark.parametrize("config", [LEARNED, ALIBI], ids=["learned", "alibi"])
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


@pytest.mark.parametrize("config", [LEARNED, ALIBI], ids=["learned", "alibi"])
def test_every_weight_gets_a_gradient(config: DecoderConfig) -> None:
    decoder = random_decoder(replace(config, tied_head=False))
    attend = CausalAttention(2, 7, decoder.attention_rule, decoder.device)
    ids = torch.arange(14)
    decoder.logits(decoder(ids, ids % 7, attend)).logsumexp(-1).sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_cache_keeps_blocks_of_every_layer_in_the_weights_dtype() -> None:
    cache = KVCache(ALIBI, 5, torch.bfloat16, torch.device("cpu"))
    for pool in (cache.keys, cache.values):
        assert pool.shape == (2, 5, BLOCK, 3, 4)
        assert pool.dtype == torch.bfloat16
