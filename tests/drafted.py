"""A tiny model and a draft for it, made and saved by transformers. Knows nothing of bloomery.

The draft is the model without its last layers, which say little: it is smaller, and mostly agrees.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from talker import EOS, byte_level_tokenizer
from tiny import SHAPES, Shape, new_model

LAYERS, KEPT = 6, 2
QUIET = 0.1
"""How loud the layers are that the draft does not have."""


@dataclass(frozen=True)
class Pair:
    """Two saved checkpoints, and the models that wrote them."""

    shape: Shape
    path: Path
    draft_path: Path
    model: PreTrainedModel
    draft: PreTrainedModel


def build_pair(folder: Path) -> Pair:
    """A BLOOM and its draft, with a tokenizer, in `model` and `draft`."""
    shape = next(shape for shape in SHAPES if shape.name == "bloom-6-heads")
    model = new_model(replace(shape, options=shape.options | {"n_layer": LAYERS}))
    draft = new_model(replace(shape, options=shape.options | {"n_layer": KEPT}))
    with torch.no_grad():
        for layer in model.transformer.h[KEPT:]:
            for part in (layer.self_attention.dense, layer.mlp.dense_4h_to_h):
                part.weight.mul_(QUIET)
    draft.load_state_dict(model.state_dict(), strict=False)
    for name, one in (("model", model), ("draft", draft)):
        one.save_pretrained(folder / name)
        byte_level_tokenizer(400).save(str(folder / name / "tokenizer.json"))
        (folder / name / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, 3]}))
    return Pair(shape, folder / "model", folder / "draft", model, draft)
