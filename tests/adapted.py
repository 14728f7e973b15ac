"""Adapters with random weights, made and saved by peft for a tiny checkpoint, and the answers that it expects of them.

Knows nothing of bloomery. The expected numbers are those of the unmerged model, whose additions are computed apart.
"""

import json
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tiny import Tiny

MODULES = {
    "bloom": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "llama": ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
    "mistral": ("q_proj", "k_proj", "o_proj", "gate_proj"),
    "mixtral": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "falcon": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "phi": ("q_proj", "k_proj", "dense", "fc1", "fc2"),
    "gpt_bigcode": ("c_attn", "c_proj", "c_fc"),
}
"""Names of modules that adapters change; the last one counts as a feed-forward module where that matters."""
TABLE = {"bloom": "word_embeddings", "gpt2": "wte", "llama": "embed_tokens"}
ANY_BIAS = {"bloom", "gpt2"}


def lora(modules: tuple[str, ...], **more: Any) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", target_modules=list(modules), **({"r": 4} | more))


def prompt(count: int) -> PromptTuningConfig:
    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count)


def prefix(count: int, **more: Any) -> PrefixTuningConfig:
    return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count, **more)


def _patterns(m: tuple[str, ...]) -> LoraConfig:
    return lora(m, rank_pattern={m[0]: 6, rf"[a-z]+\.1\..*{m[1]}": 2}, alpha_pattern={m[1]: 3}, use_rslora=True)


KINDS: dict[str, Callable[[tuple[str, ...], str], PeftConfig]] = {
    "lora": lambda m, _: lora(m),
    "rslora": lambda m, _: lora(m, use_rslora=True, lora_alpha=3),
    "dora": lambda m, _: lora(m, use_dora=True),
    "patterns": lambda m, _: _patterns(m),
    "one-layer": lambda m, _: lora(m, layers_to_transform=[1]),
    "all-biases": lambda m, _: lora(m, bias="all"),
    "lora-embedding": lambda m, table: lora((*m, table)),
    "dora-embedding": lambda m, table: lora((*m, table), use_dora=True),
    "lora-head": lambda m, _: lora((*m, "lm_head")),
    "dora-head": lambda m, _: lora((*m, "lm_head"), use_dora=True),
    "saved-head": lambda m, _: lora(m, modules_to_save=["lm_head"]),
    "saved-embedding": lambda m, table: lora(m, modules_to_save=[table]),
    "saved-both": lambda m, table: lora(m, modules_to_save=[table, "lm_head"]),
    "tokens": lambda m, _: lora(m, trainable_token_indices=[3, 5, 100]),
    "ia3": lambda m, _: IA3Config(task_type="CAUSAL_LM", target_modules=list(m), feedforward_modules=[m[-1]]),
    "prompt": lambda *_: prompt(70),
    "one-prompt-token": lambda *_: prompt(1),
    "p-tuning": lambda *_: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=7),
    "prefix": lambda *_: prefix(9),
    "projected-prefix": lambda *_: prefix(64, prefix_projection=True),
}
LOW_RANK_BIAS = "low-rank-bias"
"""LoRA with a bias of its own, which only modules that have one can take."""
TIED = ("tied-lora", "tied-saved")
"""What keeps a tied head tied, where peft knows how to."""
KINDS |= {
    LOW_RANK_BIAS: lambda m, _: lora(m, lora_bias=True, bias="lora_only"),
    "tied-lora": lambda m, table: lora((*m, table), ensure_weight_tying=True),
    "tied-saved": lambda m, table: lora(m, modules_to_save=[table], ensure_weight_tying=True),
}


@dataclass(frozen=True)
class Adapted:
    """A saved adapter beside the tiny model that it is for, and both together as peft runs them."""

    tiny: Tiny
    path: Path
    model: PeftModel

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> Tensor:
        """(T, V): those of the text's own positions."""
        return self.model(torch.tensor([ids])).logits[0, -len(ids) :]

    @torch.inference_mode()
    def greedy(self, ids: list[int], steps: int) -> list[int]:
        prompt = torch.tensor([ids])
        with quiet():
            out = self.model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=steps, pad_token_id=0
            )
        return out[0, len(ids) :].tolist()

    def config(self, **changes: Any) -> None:
        """Change the saved configuration."""
        file = self.path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def tensors(self, change: Callable[[dict[str, Tensor]], object]) -> None:
        """Change the saved tensors."""
        file = self.path / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)


@contextmanager
def quiet() -> Any:
    """peft and transformers warn of much that is meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def adapt(tiny: Tiny, folder: Path, config: PeftConfig, *, base: PreTrainedModel | None = None) -> Adapted:
    """Make an adapter with random weights and save it.

    Args:
        base: the model that it is for, where that is not quite what the tiny checkpoint holds; it is changed.
    """
    with quiet():
        torch.manual_seed(2)  # peft draws from the global generator, and tests must not depend on what ran before
        trained = get_peft_model(base or fresh(tiny), config)
        shake(trained)
        trained.save_pretrained(folder)
    return Adapted(tiny, folder, load(tiny, folder, base=trained.unload() if base else None))


def kind(tiny: Tiny, folder: Path, name: str) -> Adapted:
    """One of `KINDS`."""
    family = tiny.shape.family
    return adapt(tiny, folder, KINDS[name](MODULES[family], TABLE.get(family, "")))


def fresh(tiny: Tiny) -> PreTrainedModel:
    """The tiny checkpoint in a model of its own: peft changes what it is given."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny.path, dtype=torch.float32)
    return model


def load(tiny: Tiny, folder: Path, *, base: PreTrainedModel | None = None) -> PeftModel:
    with quiet():
        model: PeftModel = PeftModel.from_pretrained(base or fresh(tiny), folder).eval()
    return model


def shake(model: PeftModel) -> None:
    """Random numbers for all that is trained: large enough to change every token, small enough to keep scores in the
    range in which fp32 computes them well.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if not parameter.requires_grad:
                continue
            if "magnitude" in name or "ia3_l" in name:
                parameter.mul_(1 + 0.2 * noise)
            elif "lora_" in name and name.split(".lora_")[1].startswith(("A", "B", "embedding")):
                parameter.copy_(0.15 * noise)
            else:
                parameter.add_((0.2 if "prompt_encoder" in name else 0.1) * noise)
