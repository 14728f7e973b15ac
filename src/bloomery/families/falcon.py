"""Falcon 7B (one key and value for all heads, one norm), 40B and 180B (grouped, two norms), and falcon-rw (ALiBi).

Their fused qkv is grouped as ours in all of them.
"""

from typing import Any

from bloomery.families.rules import Family, Raw, Rule
from bloomery.families.words import activation, flag, from_rotary, head_size, require, rotary, their_activation
from bloomery.model.config import DecoderConfig, Residual


def to_config(raw: Raw) -> DecoderConfig:
    hidden = require(raw, "hidden_size", "n_embed")
    heads = require(raw, "num_attention_heads", "n_head")
    head_dim, alibi, bias = head_size(hidden, heads), flag(raw, "alibi", False), raw.get("bias", False)
    if flag(raw, "new_decoder_architecture", False):
        kv_heads = raw.get("num_kv_heads") or raw.get("n_head_kv") or heads
    else:
        kv_heads = 1 if flag(raw, "multi_query", True) else heads
    return DecoderConfig(
        vocab_size=require(raw, "vocab_size"),
        hidden_size=hidden,
        num_layers=require(raw, "num_hidden_layers", "n_layer"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_size=raw.get("ffn_hidden_size") or 4 * hidden,
        max_seq_len=raw.get("max_position_embeddings", 2048),
        positions="alibi_coarse" if alibi else "rotary",
        rotary=None if alibi else rotary(raw, head_dim),
        residual=_residual(raw),
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        activation=activation(raw, "activation", "gelu"),
        attn_bias=bias,
        mlp_bias=bias,
        tied_head=raw.get("tie_word_embeddings", True),
    )


def _residual(raw: Raw) -> Residual:
    if not flag(raw, "new_decoder_architecture", False):
        return "parallel_one_norm" if flag(raw, "parallel_attn", True) else "sequential"
    return "parallel_one_norm" if raw.get("num_ln_in_parallel_attn") == 1 else "parallel"


def from_config(config: DecoderConfig) -> dict[str, Any]:
    new = config.residual == "parallel" or config.num_kv_heads not in (1, config.num_heads)
    return {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "ffn_hidden_size": config.ffn_size,
        "max_position_embeddings": config.max_seq_len,
        "alibi": config.positions == "alibi_coarse",
        **from_rotary(config),
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": (2 if config.residual == "parallel" else 1) if new else None,
        "multi_query": config.num_kv_heads == 1,
        "parallel_attn": config.residual != "sequential",
        "layer_norm_epsilon": config.norm_eps,
        "activation": their_activation(config),
        "bias": config.attn_bias,
        "tie_word_embeddings": config.tied_head,
    }


def _two_norms(config: DecoderConfig) -> bool:
    return config.residual == "parallel"


def _first_norm(config: DecoderConfig) -> bool:
    return config.residual != "parallel"


FALCON = Family(
    name="falcon",
    to_config=to_config,
    from_config=from_config,
    prefix="transformer.",
    ignored=(r"h\.\d+\.self_attention\.(maskless_)?rotary(_emb)?\.inv_freq",),
    rules=(
        Rule("word_embeddings.weight", "embed.tokens.weight"),
        Rule("h.{i}.input_layernorm.weight", "blocks.{i}.norm1.weight", when=_first_norm),
        Rule("h.{i}.input_layernorm.bias", "blocks.{i}.norm1.bias", when=_first_norm),
        Rule("h.{i}.post_attention_layernorm.weight", "blocks.{i}.norm2.weight", when=_first_norm),
        Rule("h.{i}.post_attention_layernorm.bias", "blocks.{i}.norm2.bias", when=_first_norm),
        Rule("h.{i}.ln_attn.weight", "blocks.{i}.norm1.weight", when=_two_norms),
        Rule("h.{i}.ln_attn.bias", "blocks.{i}.norm1.bias", when=_two_norms),
        Rule("h.{i}.ln_mlp.weight", "blocks.{i}.norm2.weight", when=_two_norms),
        Rule("h.{i}.ln_mlp.bias", "blocks.{i}.norm2.bias", when=_two_norms),
        Rule("h.{i}.self_attention.query_key_value.weight", "blocks.{i}.attn.qkv.weight"),
        Rule("h.{i}.self_attention.query_key_value.bias", "blocks.{i}.attn.qkv.bias"),
        Rule("h.{i}.self_attention.dense.weight", "blocks.{i}.attn.out.weight"),
        Rule("h.{i}.self_attention.dense.bias", "blocks.{i}.attn.out.bias"),
        Rule("h.{i}.mlp.dense_h_to_4h.weight", "blocks.{i}.mlp.up.weight"),
        Rule("h.{i}.mlp.dense_h_to_4h.bias", "blocks.{i}.mlp.up.bias"),
        Rule("h.{i}.mlp.dense_4h_to_h.weight", "blocks.{i}.mlp.down.weight"),
        Rule("h.{i}.mlp.dense_4h_to_h.bias", "blocks.{i}.mlp.down.bias"),
        Rule("ln_f.weight", "norm.weight"),
        Rule("ln_f.bias", "norm.bias"),
    ),
)
