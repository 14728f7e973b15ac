"""Tiny random checkpoints, made and saved by transformers: the shapes, their weights, the answers expected of them.

Knows nothing of bloomery. A random model that repeats one token, or whose two best tokens are equally likely, would
hide mistakes: standard deviations and seeds are chosen so that the text moves (tests/parity/test_fixture.py holds it).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel


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


SHAPES = (
    _bloom("bloom-8-heads", 128, 8, 2, 512, std=0.25, seed=28),
    _bloom("bloom-6-heads", 96, 6, 3, 777, std=0.2, seed=9),
    _bloom("bloom-7-heads", 112, 7, 2, 1000, std=0.2, seed=16, layer_norm_epsilon=1e-3),
    _gpt2("gpt2-tanh", 64, 4, 3, 512, std=0.2, seed=4, layer_norm_epsilon=1e-3),
    _gpt2("gpt2-gelu", 80, 5, 2, 777, std=0.2, seed=16, activation_function="gelu", n_inner=200),
    _gpt2("gpt2-relu-untied", 96, 3, 2, 640, std=0.2, seed=12, activation_function="relu", tie_word_embeddings=False),
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
    model: PreTrainedModel
    if shape.family == "bloom":
        model = BloomForCausalLM(BloomConfig(**shape.options, **ends))
    else:
        model = GPT2LMHeadModel(GPT2Config(**shape.options, **ends))
    generator = torch.Generator().manual_seed(shape.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
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
