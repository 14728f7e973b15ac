"""Tiny decoders with an adapter that is trained here, and what both write. Knows no test."""

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from adapted import quiet
from bloomery.families import FAMILIES, Family
from bloomery.model.decoder import Decoder
from bloomery.train.lora import add_lora_, lora_parameters
from bloomery.train.lora_folder import write_lora
from bloomery.train.recipe.lora_options import LoraOptions
from drive import load
from tiny import Tiny

RANK_4 = LoraOptions(rank=4, alpha=6)


def family_of(tiny: Tiny) -> Family:
    return FAMILIES[tiny.shape.family]


def adapted(tiny: Tiny, options: LoraOptions = RANK_4, *, moved: bool = True) -> Decoder:
    """A tiny decoder with an adapter, `moved` away from where it begins, so that it changes every token."""
    decoder = load(tiny.path).requires_grad_(True)  # as one that has been trained as a whole
    add_lora_(decoder, family_of(tiny), options, seed=5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora_parameters(decoder).values() if moved else ():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    return decoder


def write(decoder: Decoder, tiny: Tiny, folder: Path, options: LoraOptions = RANK_4) -> Path:
    write_lora(decoder, family_of(tiny), folder, options, base=tiny.shape.name)
    return folder


def tensors_of(model: PeftModel) -> dict[str, Tensor]:
    with quiet():
        return get_peft_model_state_dict(model)
