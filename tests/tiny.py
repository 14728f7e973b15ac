"""Tiny random checkpoints, made and saved by transformers: the shapes, their weights, the answers expected of them.

Knows nothing of bloomery. A random model that repeats one token, or whose two best tokens are equally likely, would
hide mistakes: standard deviations and seeds are chosen so that the text moves (tests/parity/test_fixture.py holds it).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """One tiny model: its family, what its config.json says, how large its random weights are."""

    name: str
    family: str
    options: dict[str, Any] = field(hash=False)
    std: float
    seed: int


def _bloom(name: str, hidden: int, heads: int, layers: int, vocab: int, std: float, seed: int, **more: Any) -> Shape:
    options = {"hidden_size": hidden, "n_head": heads, "n_layer": layers, "vocab_size": vocab, "seq_length": 512}
    return Shape(name, "bloom", options | more, std, seed)


def _gpt2(name: str, hidden: int, heads: int, layers: int, vocab: int, std: float, seed: int, **more: Any) -> Shape:
    options = {"n_embd": hidden, "n_head": heads, "n_layer": layers, "vocab_size": vocab, "n_positions": 320}
    return Shape(name, "gpt2", options | more, std, seed)


def _llama(name: str, hidden: int, heads: int, kv: int, vocab: int, std: float, seed: int, **more: Any) -> Shape:
    """Llama, and those that took over its words."""
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocab}
    layers = {"num_hidden_layers": 2, "intermediate_size": 2 * hidden, "max_position_embeddings": 512}
    return Shape(name, name.split("-")[0], sizes | layers | more, std, seed)


def _falcon(name: str, hidden: int, heads: int, vocab: int, std: float, seed: int, **more: Any) -> Shape:
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_hidden_layers": 2, "vocab_size": vocab}
    return Shape(name, "falcon", sizes | {"max_position_embeddings": 512} | more, std, seed)


def _starcoder(name: str, hidden: int, heads: int, vocab: int, std: float, seed: int, **more: Any) -> Shape:
    sizes = {"n_embd": hidden, "n_head": heads, "n_layer": 2, "vocab_size": vocab, "n_positions": 320}
    return Shape(name, "gpt_bigcode", sizes | more, std, seed)


# Wavelengths of 6 to 2,000 positions, so that some are scaled, some are not, and some are blended.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
GROUPED = {"new_decoder_architecture": True, "num_kv_heads": 2}

SHAPES = (
    _bloom("bloom-8-heads", 128, 8, 2, 512, std=0.25, seed=28),
    _bloom("bloom-6-heads", 96, 6, 3, 777, std=0.2, seed=9),
    _bloom("bloom-7-heads", 112, 7, 2, 1000, std=0.2, seed=16, layer_norm_epsilon=1e-3),
    _gpt2("gpt2-tanh", 64, 4, 3, 512, std=0.2, seed=4, layer_norm_epsilon=1e-3),
    _gpt2("gpt2-gelu", 80, 5, 2, 777, std=0.2, seed=16, activation_function="gelu", n_inner=200),
    _gpt2("gpt2-relu-untied", 96, 3, 2, 640, std=0.2, seed=12, activation_function="relu", tie_word_embeddings=False),
    _llama("llama-multi-head", 64, 4, 4, 512, std=0.2, seed=1, rms_norm_eps=1e-3),
    _llama("llama-grouped-scaled", 96, 6, 2, 777, std=0.2, seed=1, rope_parameters=LLAMA3, tie_word_embeddings=True),
    _llama(
        "llama-biased-linear",
        64,
        4,
        1,
        512,
        std=0.2,
        seed=2,
        rope_parameters=LINEAR,
        attention_bias=True,
        mlp_bias=True,
        head_dim=32,
    ),
    _llama("mistral-window", 96, 4, 2, 640, std=0.2, seed=1, sliding_window=70, head_dim=32),
    _llama("mistral-whole", 64, 8, 4, 512, std=0.2, seed=1, sliding_window=None),
    _llama("mixtral-2-of-4", 64, 4, 2, 512, std=0.2, seed=1, num_local_experts=4, num_experts_per_tok=2),
    _llama(
        "mixtral-2-of-3-window",
        96,
        6,
        3,
        640,
        std=0.2,
        seed=1,
        num_local_experts=3,
        num_experts_per_tok=2,
        sliding_window=100,
    ),
    _falcon("falcon-7b-like", 80, 5, 512, std=0.2, seed=12),
    _falcon("falcon-40b-like", 96, 6, 777, std=0.2, seed=9, **GROUPED),
    _falcon(
        "falcon-11b-like", 64, 4, 512, std=0.2, seed=14, **GROUPED, num_ln_in_parallel_attn=1, tie_word_embeddings=False
    ),
    _falcon(
        "falcon-rw-like", 96, 12, 640, std=0.2, seed=1, alibi=True, multi_query=False, parallel_attn=False, bias=True
    ),
    _llama("phi-partial", 80, 4, 4, 512, std=0.2, seed=2, partial_rotary_factor=0.4),
    _llama("phi-grouped", 64, 4, 2, 640, std=0.2, seed=1),
    _starcoder("starcoder-multi-query", 64, 4, 512, std=0.2, seed=1),
    _starcoder("starcoder-multi-head", 96, 6, 640, std=0.2, seed=2, multi_query=False, layer_norm_epsilon=1e-3),
)
GREEDY_STEPS = 64
PROMPT_LENGTHS = (1, 12, 40, 63, 64, 65, 130)
"""One token, and texts that begin before, at and after the border of a block of 64, or cross it as they grow."""


@dataclass(frozen=True)
class Tiny:
    """A saved checkpoint beside the model that wrote it."""

    shape: Shape
    path: Path
    model: PreTrainedModel
    known: dict[tuple[int, ...], list[int]] = field(default_factory=dict, repr=False)

    def prompt(self, length: int, seed: int = 0) -> list[int]:
        """Random ids."""
        generator = torch.Generator().manual_seed(1000 * length + seed)
        return torch.randint(self.model.config.vocab_size, (length,), generator=generator).tolist()

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> Tensor:
        """(T, V): what transformers computes."""
        return self.model(torch.tensor([ids])).logits[0]

    def greedy(self, ids: list[int]) -> list[int]:
        """The `GREEDY_STEPS` tokens that transformers generates, remembered."""
        if tuple(ids) not in self.known:
            prompt = torch.tensor([ids])
            mask = torch.ones_like(prompt)
            out = self.model.generate(prompt, attention_mask=mask, do_sample=False, max_new_tokens=GREEDY_STEPS)
            self.known[tuple(ids)] = out[0, len(ids) :].tolist()
        return self.known[tuple(ids)]


def build(shape: Shape, folder: Path) -> Tiny:
    """Make the model of a shape and save it."""
    model = new_model(shape)
    model.save_pretrained(folder)
    return Tiny(shape, folder, model)


def new_model(shape: Shape) -> PreTrainedModel:
    """The random transformers model of a shape, in fp32."""
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(shape.family, **shape.options, **ends)
    )
    generator = torch.Generator().manual_seed(shape.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:  # the experts of a layer are one tensor
                parameter.copy_(_strength(name) * shape.std * noise)
            else:  # norm weights around 1, all biases around 0
                parameter.copy_(_strength(name) * (float(name.endswith("weight")) + 0.1 * noise))
    return model.eval()


def _strength(name: str) -> float:
    """What makes the text move although tokens look most like themselves, and yet keeps rounding errors small."""
    if "query_key_value" in name or "c_attn" in name:
        return 0.5  # scores of size 30 would make each softmax the choice of one key
    if "word_embeddings_layernorm" in name:
        return 0.5  # a token weighs less than what the layers make of it
    return 1.25 if ".dense" in name else 1.0
