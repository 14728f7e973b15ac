"""Phi-1 to Phi-2: attention and feed-forward at once behind one norm, partly rotary heads, biases also at the head."""

from typing import Any

from bloomery.families.reorders import qkv_apart
from bloomery.families.rules import Family, Raw, Rule
from bloomery.families.words import activation, from_rotary, head_size, refuse_unless, require, rotary, their_activation
from bloomery.model.config import DecoderConfig


def to_config(raw: Raw) -> DecoderConfig:
    refuse_unless(raw, qk_layernorm=False)
    hidden, heads = require(raw, "hidden_size"), require(raw, "num_attention_heads")
    head_dim = head_size(hidden, heads)
    return DecoderConfig(
        vocab_size=require(raw, "vocab_size"),
        hidden_size=hidden,
        num_layers=require(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        ffn_size=require(raw, "intermediate_size"),
        max_seq_len=require(raw, "max_position_embeddings"),
        positions="rotary",
        rotary=rotary(raw, head_dim, share=0.5),
        residual="parallel_one_norm",
        norm_eps=raw.get("layer_norm_eps", 1e-5),
        activation=activation(raw, "hidden_act", "gelu_new"),
        head_bias=True,
        tied_head=raw.get("tie_word_embeddings", False),
    )


def from_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.ffn_size,
        "max_position_embeddings": config.max_seq_len,
        **from_rotary(config),
        "layer_norm_eps": config.norm_eps,
        "hidden_act": their_activation(config),
        "tie_word_embeddings": config.tied_head,
    }


PHI = Family(
    name="phi",
    to_config=to_config,
    from_config=from_config,
    prefix="model.",
    ignored=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    rules=(
        Rule("embed_tokens.weight", "embed.tokens.weight"),
        Rule("layers.{i}.input_layernorm.weight", "blocks.{i}.norm1.weight"),
        Rule("layers.{i}.input_layernorm.bias", "blocks.{i}.norm1.bias"),
        Rule("layers.{i}.self_attn.{q,k,v}_proj.weight", "blocks.{i}.attn.qkv.weight", qkv_apart),
        Rule("layers.{i}.self_attn.{q,k,v}_proj.bias", "blocks.{i}.attn.qkv.bias", qkv_apart),
        Rule("layers.{i}.self_attn.dense.weight", "blocks.{i}.attn.out.weight"),
        Rule("layers.{i}.self_attn.dense.bias", "blocks.{i}.attn.out.bias"),
        Rule("layers.{i}.mlp.fc1.weight", "blocks.{i}.mlp.up.weight"),
        Rule("layers.{i}.mlp.fc1.bias", "blocks.{i}.mlp.up.bias"),
        Rule("layers.{i}.mlp.fc2.weight", "blocks.{i}.mlp.down.weight"),
        Rule("layers.{i}.mlp.fc2.bias", "blocks.{i}.mlp.down.bias"),
        Rule("final_layernorm.weight", "norm.weight"),
        Rule("final_layernorm.bias", "norm.bias"),
    ),
)
