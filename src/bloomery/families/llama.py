"""Llama 2 and 3, and Mistral: RMSNorm, rotary positions, SwiGLU; q, k and v apart, which we fuse by key-value group."""

from typing import Any

from bloomery.families.reorders import qkv_apart
from bloomery.families.rules import Family, Raw, Rule
from bloomery.families.words import activation, from_rotary, head_size, refuse_unless, require, rotary, their_activation
from bloomery.model.config import DecoderConfig


def common_sizes(raw: Raw) -> dict[str, Any]:
    """What config.json says in the words that these models share."""
    hidden, heads = require(raw, "hidden_size"), require(raw, "num_attention_heads")
    head_dim = head_size(hidden, heads) if raw.get("head_dim") is None else require(raw, "head_dim")
    return {
        "vocab_size": require(raw, "vocab_size"),
        "hidden_size": hidden,
        "num_layers": require(raw, "num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": raw.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "ffn_size": require(raw, "intermediate_size"),
        "max_seq_len": require(raw, "max_position_embeddings"),
        "positions": "rotary",
        "rotary": rotary(raw, head_dim),
        "norm": "rms",
        "norm_eps": raw.get("rms_norm_eps", 1e-6),
        "activation": activation(raw, "hidden_act", "silu"),
        "gated_mlp": True,
        "attn_bias": False,
        "mlp_bias": False,
        "tied_head": raw.get("tie_word_embeddings", False),
    }


def common_words(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `common_sizes`."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_size,
        "max_position_embeddings": config.max_seq_len,
        **from_rotary(config),
        "rms_norm_eps": config.norm_eps,
        "hidden_act": their_activation(config),
        "tie_word_embeddings": config.tied_head,
    }


def _from_llama(raw: Raw) -> DecoderConfig:
    sizes = common_sizes(raw)
    biases = {"attn_bias": raw.get("attention_bias", False), "mlp_bias": raw.get("mlp_bias", False)}
    return DecoderConfig(**sizes | biases)


def _to_llama(config: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **common_words(config),
        "attention_bias": config.attn_bias,
        "mlp_bias": config.mlp_bias,
    }


def _from_mistral(raw: Raw) -> DecoderConfig:
    refuse_unless(raw, layer_types=None)
    return DecoderConfig(**common_sizes(raw), sliding_window=raw.get("sliding_window", 4096))


def _to_mistral(config: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **common_words(config),
        "sliding_window": config.sliding_window,
    }


FRAME = (
    Rule("embed_tokens.weight", "embed.tokens.weight"),
    Rule("layers.{i}.input_layernorm.weight", "blocks.{i}.norm1.weight"),
    Rule("layers.{i}.self_attn.{q,k,v}_proj.weight", "blocks.{i}.attn.qkv.weight", qkv_apart),
    Rule("layers.{i}.self_attn.o_proj.weight", "blocks.{i}.attn.out.weight"),
    Rule("layers.{i}.post_attention_layernorm.weight", "blocks.{i}.norm2.weight"),
    Rule("norm.weight", "norm.weight"),
)
"""All but the feed-forward half."""

RULES = (
    *FRAME,
    Rule("layers.{i}.self_attn.{q,k,v}_proj.bias", "blocks.{i}.attn.qkv.bias", qkv_apart),
    Rule("layers.{i}.self_attn.o_proj.bias", "blocks.{i}.attn.out.bias"),
    Rule("layers.{i}.mlp.gate_proj.weight", "blocks.{i}.mlp.gate.weight"),
    Rule("layers.{i}.mlp.gate_proj.bias", "blocks.{i}.mlp.gate.bias"),
    Rule("layers.{i}.mlp.up_proj.weight", "blocks.{i}.mlp.up.weight"),
    Rule("layers.{i}.mlp.up_proj.bias", "blocks.{i}.mlp.up.bias"),
    Rule("layers.{i}.mlp.down_proj.weight", "blocks.{i}.mlp.down.weight"),
    Rule("layers.{i}.mlp.down_proj.bias", "blocks.{i}.mlp.down.bias"),
)
BUFFERS = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

LLAMA = Family(
    name="llama", to_config=_from_llama, from_config=_to_llama, rules=RULES, prefix="model.", ignored=BUFFERS
)
MISTRAL = Family(
    name="mistral", to_config=_from_mistral, from_config=_to_mistral, rules=RULES, prefix="model.", ignored=BUFFERS
)
