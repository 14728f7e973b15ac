"""BLOOM and BLOOMZ: ALiBi, a LayerNorm on the embeddings, head-major fused qkv (the order we keep), tied head."""

from typing import Any

from bloomery.families.rules import Family, Raw, Rule
from bloomery.families.words import head_size, refuse_unless, require
from bloomery.model.config import DecoderConfig


def to_config(raw: Raw) -> DecoderConfig:
    refuse_unless(raw, apply_residual_connection_post_layernorm=False)
    hidden = require(raw, "hidden_size", "n_embed")
    heads = require(raw, "n_head", "num_attention_heads")
    return DecoderConfig(
        vocab_size=require(raw, "vocab_size"),
        hidden_size=hidden,
        num_layers=require(raw, "n_layer", "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_size(hidden, heads),
        ffn_size=4 * hidden,
        max_seq_len=raw.get("seq_length", 2048),
        positions="alibi",
        embed_norm=True,
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        tied_head=raw.get("tie_word_embeddings", True),
    )


def from_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "seq_length": config.max_seq_len,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
    }


BLOOM = Family(
    name="bloom",
    to_config=to_config,
    from_config=from_config,
    prefix="transformer.",
    rules=(
        Rule("word_embeddings.weight", "embed.tokens.weight"),
        Rule("word_embeddings_layernorm.weight", "embed.norm.weight"),
        Rule("word_embeddings_layernorm.bias", "embed.norm.bias"),
        Rule("h.{i}.input_layernorm.weight", "blocks.{i}.norm1.weight"),
        Rule("h.{i}.input_layernorm.bias", "blocks.{i}.norm1.bias"),
        Rule("h.{i}.self_attention.query_key_value.weight", "blocks.{i}.attn.qkv.weight"),
        Rule("h.{i}.self_attention.query_key_value.bias", "blocks.{i}.attn.qkv.bias"),
        Rule("h.{i}.self_attention.dense.weight", "blocks.{i}.attn.out.weight"),
        Rule("h.{i}.self_attention.dense.bias", "blocks.{i}.attn.out.bias"),
        Rule("h.{i}.post_attention_layernorm.weight", "blocks.{i}.norm2.weight"),
        Rule("h.{i}.post_attention_layernorm.bias", "blocks.{i}.norm2.bias"),
        Rule("h.{i}.mlp.dense_h_to_4h.weight", "blocks.{i}.mlp.up.weight"),
        Rule("h.{i}.mlp.dense_h_to_4h.bias", "blocks.{i}.mlp.up.bias"),
        Rule("h.{i}.mlp.dense_4h_to_h.weight", "blocks.{i}.mlp.down.weight"),
        Rule("h.{i}.mlp.dense_4h_to_h.bias", "blocks.{i}.mlp.down.bias"),
        Rule("ln_f.weight", "norm.weight"),
        Rule("ln_f.bias", "norm.bias"),
    ),
)
