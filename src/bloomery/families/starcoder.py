"""StarCoder and SantaCoder (gpt_bigcode): GPT-2's blocks with linear layers, and mostly one key for all heads.

Their fused qkv is grouped as ours.
"""

from typing import Any

from bloomery.families.rules import Family, Raw, Rule
from bloomery.families.words import activation, flag, head_size, refuse_unless, require, their_activation
from bloomery.model.config import DecoderConfig


def to_config(raw: Raw) -> DecoderConfig:
    refuse_unless(raw, scale_attn_weights=True, add_cross_attention=False)
    hidden = require(raw, "n_embd", "hidden_size")
    heads = require(raw, "n_head", "num_attention_heads")
    return DecoderConfig(
        vocab_size=require(raw, "vocab_size"),
        hidden_size=hidden,
        num_layers=require(raw, "n_layer", "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=1 if flag(raw, "multi_query", True) else heads,
        head_dim=head_size(hidden, heads),
        ffn_size=raw.get("n_inner") or 4 * hidden,
        max_seq_len=require(raw, "n_positions", "max_position_embeddings"),
        positions="learned",
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        activation=activation(raw, "activation_function", "gelu_pytorch_tanh"),
        tied_head=raw.get("tie_word_embeddings", True),
    )


def from_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPTBigCodeForCausalLM"],
        "model_type": "gpt_bigcode",
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "multi_query": config.num_kv_heads == 1,
        "n_inner": config.ffn_size,
        "n_positions": config.max_seq_len,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": their_activation(config, "gelu_pytorch_tanh"),
        "tie_word_embeddings": config.tied_head,
    }


STARCODER = Family(
    name="gpt_bigcode",
    to_config=to_config,
    from_config=from_config,
    prefix="transformer.",
    ignored=(r"h\.\d+\.attn\.(bias|masked_bias)",),
    rules=(
        Rule("wte.weight", "embed.tokens.weight"),
        Rule("wpe.weight", "embed.positions.weight"),
        Rule("h.{i}.ln_1.weight", "blocks.{i}.norm1.weight"),
        Rule("h.{i}.ln_1.bias", "blocks.{i}.norm1.bias"),
        Rule("h.{i}.attn.c_attn.weight", "blocks.{i}.attn.qkv.weight"),
        Rule("h.{i}.attn.c_attn.bias", "blocks.{i}.attn.qkv.bias"),
        Rule("h.{i}.attn.c_proj.weight", "blocks.{i}.attn.out.weight"),
        Rule("h.{i}.attn.c_proj.bias", "blocks.{i}.attn.out.bias"),
        Rule("h.{i}.ln_2.weight", "blocks.{i}.norm2.weight"),
        Rule("h.{i}.ln_2.bias", "blocks.{i}.norm2.bias"),
        Rule("h.{i}.mlp.c_fc.weight", "blocks.{i}.mlp.up.weight"),
        Rule("h.{i}.mlp.c_fc.bias", "blocks.{i}.mlp.up.bias"),
        Rule("h.{i}.mlp.c_proj.weight", "blocks.{i}.mlp.down.weight"),
        Rule("h.{i}.mlp.c_proj.bias", "blocks.{i}.mlp.down.bias"),
        Rule("ln_f.weight", "norm.weight"),
        Rule("ln_f.bias", "norm.bias"),
    ),
)
