"""GPT-2 and DistilGPT-2: learned positions, Conv1D matrices stored [in, out], qkv fused as all q, all k, all v."""

from typing import Any

from bloomery.families.reorders import qkv_by_head, qkv_by_head_transposed, transposed
from bloomery.families.rules import Family, Raw, Rule
from bloomery.families.words import activation, head_size, refuse_unless, require, their_activation
from bloomery.model.config import DecoderConfig


def to_config(raw: Raw) -> DecoderConfig:
    refuse_unless(raw, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    hidden = require(raw, "n_embd", "hidden_size")
    heads = require(raw, "n_head", "num_attention_heads")
    return DecoderConfig(
        vocab_size=require(raw, "vocab_size"),
        hidden_size=hidden,
        num_layers=require(raw, "n_layer", "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_size(hidden, heads),
        ffn_size=raw.get("n_inner") or 4 * hidden,
        max_seq_len=require({"n_positions": raw.get("n_ctx"), **raw}, "n_positions"),  # n_ctx may differ: not read
        positions="learned",
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        activation=activation(raw, "activation_function", "gelu_new"),
        tied_head=raw.get("tie_word_embeddings", True),
    )


def from_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.ffn_size,
        "n_positions": config.max_seq_len,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": their_activation(config),
        "tie_word_embeddings": config.tied_head,
    }


GPT2 = Family(
    name="gpt2",
    to_config=to_config,
    from_config=from_config,
    prefix="transformer.",
    ignored=(r"h\.\d+\.attn\.(bias|masked_bias)",),
    rules=(
        Rule("wte.weight", "embed.tokens.weight"),
        Rule("wpe.weight", "embed.positions.weight"),
        Rule("h.{i}.ln_1.weight", "blocks.{i}.norm1.weight"),
        Rule("h.{i}.ln_1.bias", "blocks.{i}.norm1.bias"),
        Rule("h.{i}.attn.c_attn.weight", "blocks.{i}.attn.qkv.weight", qkv_by_head_transposed),
        Rule("h.{i}.attn.c_attn.bias", "blocks.{i}.attn.qkv.bias", qkv_by_head),
        Rule("h.{i}.attn.c_proj.weight", "blocks.{i}.attn.out.weight", transposed),
        Rule("h.{i}.attn.c_proj.bias", "blocks.{i}.attn.out.bias"),
        Rule("h.{i}.ln_2.weight", "blocks.{i}.norm2.weight"),
        Rule("h.{i}.ln_2.bias", "blocks.{i}.norm2.bias"),
        Rule("h.{i}.mlp.c_fc.weight", "blocks.{i}.mlp.up.weight", transposed),
        Rule("h.{i}.mlp.c_fc.bias", "blocks.{i}.mlp.up.bias"),
        Rule("h.{i}.mlp.c_proj.weight", "blocks.{i}.mlp.down.weight", transposed),
        Rule("h.{i}.mlp.c_proj.bias", "blocks.{i}.mlp.down.bias"),
        Rule("ln_f.weight", "norm.weight"),
        Rule("ln_f.bias", "norm.bias"),
    ),
)
