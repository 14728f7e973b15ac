"""What contrastive search gives in transformers 4.55.4, the last whose core has it. Knows nothing of bloomery.

Writes contrastive.json. No part of the tests, which read that file: run it in an environment of its own,

    python3 -m venv ORACLE && ORACLE/bin/pip install transformers==4.55.4 torch==2.13.0
    PYTHONPATH=tests ORACLE/bin/python tests/oracles/contrastive.py
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel

from tiny import SHAPES, new_model

VERSION = "4.55.4"
NEW = 24
ENDS = [2, 3]
LENGTHS = (1, 5, 64, 70)
LIKELY_ENDS = "2=5.0 3=4.0"

# A bias is "ID=BIAS ID=BIAS", since JSON has no tuples.
CASES: list[dict[str, Any]] = [
    {"penalty_alpha": 0.6, "top_k": 4},
    {"penalty_alpha": 0.3, "top_k": 2},
    {"penalty_alpha": 0.9, "top_k": 8},
    {"penalty_alpha": 1.0, "top_k": 3},  # likeliness counts for nothing
    {"penalty_alpha": 0.05, "top_k": 64},
    {"penalty_alpha": 0.6, "top_k": 5, "sequence_bias": LIKELY_ENDS},
    {"penalty_alpha": 0.5, "top_k": 4, "sequence_bias": LIKELY_ENDS, "min_new_tokens": 6},
    {"penalty_alpha": 0.4, "top_k": 6, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
]
MODELS = ("bloom-6-heads", "gpt2-tanh", "llama-multi-head")


def biases(text: str) -> dict[tuple[int, ...], float]:
    """What a bias of the table means."""
    return {(int(token),): float(bias) for token, _, bias in (pair.partition("=") for pair in text.split())}


def random_prompt(vocabulary: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(4, vocabulary, (length,), generator=generator).tolist()


def sha256(model: PreTrainedModel) -> str:
    """Of all parameters, by name and in that order."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def answer(model: PreTrainedModel, prompt: list[int], case: dict[str, Any]) -> list[int]:
    """The tokens behind one prompt, to the end of the text."""
    options = case | ({"sequence_bias": biases(case["sequence_bias"])} if "sequence_bias" in case else {})
    config = GenerationConfig(max_new_tokens=NEW, eos_token_id=ENDS, pad_token_id=0, do_sample=False, **options)
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return out[0, len(prompt) :].tolist()


def answers() -> dict[str, Any]:
    """All cases behind all prompts, by all models."""
    made = []
    for shape in SHAPES:
        if shape.name not in MODELS:
            continue
        model = new_model(shape)
        prompts = [random_prompt(model.config.vocab_size, length) for length in LENGTHS]
        texts = [{"options": case, "tokens": [answer(model, prompt, case) for prompt in prompts]} for case in CASES]
        made.append(
            {"shape": shape.name, "seed": shape.seed, "sha256": sha256(model), "prompts": prompts} | {"texts": texts}
        )
    return {"transformers": transformers.__version__, "max_new_tokens": NEW, "eos_token_id": ENDS, "models": made}


def main() -> None:
    if transformers.__version__ != VERSION:
        sys.exit(f"transformers is {transformers.__version__}: run this with {VERSION}, as its first lines say")
    target = Path(__file__).with_suffix(".json")
    target.write_text(
        json.dumps(answers()).replace('{"shape"', '\n{"shape"').replace('{"options"', '\n{"options"') + "\n"
    )


if __name__ == "__main__":
    main()
