"""Answers cases with the transformers that it is run with: `python answer.py FOLDER < cases.json > answers.json`.

Started by make.py in an environment of its own. Knows nothing of bloomery and of the other tests. FOLDER holds a
checkpoint for each shape.
"""

import json
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.beam_constraints import ConstraintListState, DisjunctiveConstraint, PhrasalConstraint

HARDLY = 3e-6
"""Of a score: a third of what ours may differ by."""

Case = dict[str, Any]
Answer = dict[str, Any]


@cache
def model_of(path: Path, dtype: torch.dtype) -> Any:
    """A model that computes in this dtype and gives logits in fp32."""
    model = AutoModelForCausalLM.from_pretrained(path, torch_dtype=dtype).eval()
    model.get_output_embeddings().register_forward_hook(lambda module, given, logits: logits.float())
    return model


def beams(folder: Path, case: Case, dtype: torch.dtype) -> Answer:
    """Texts and scores of a search with beams."""
    config = GenerationConfig(
        do_sample=False,
        eos_token_id=case["ends"],
        pad_token_id=case["pad"],
        return_dict_in_generate=True,
        output_scores=True,
        **case["options"],
    )
    prompt = torch.tensor([case["prompt"]])
    model = model_of(folder / case["shape"], dtype)
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    rows = out.sequences[:, prompt.shape[1] :].tolist()
    return {"texts": [until_end(row, case["ends"]) for row in rows], "scores": out.sequences_scores.tolist()}


def words(folder: Path, case: Case, dtype: torch.dtype) -> Answer:
    """The same, but only the texts that hold all words: this transformers gives others too when it finds few."""
    try:
        answer = beams(folder, case, dtype)
    except RuntimeError:  # it stumbles where such a text comes behind one that has them
        return {"texts": []}
    words = [word if isinstance(word[0], list) else [word] for word in case["options"]["force_words_ids"]]
    whole = [n for n, text in enumerate(answer["texts"]) if all(holds(text, word) for word in words)]
    return {name: [found[n] for n in whole] for name, found in answer.items()}


def holds(text: list[int], choice: list[list[int]]) -> bool:
    return any(text[n : n + len(ids)] == ids for ids in choice for n in range(len(text)))


def until_end(row: list[int], ends: list[int]) -> list[int]:
    """A text without what fills its row."""
    places = [n for n, token in enumerate(row) if token in ends]
    return row[: places[0] + 1] if places else row


def progress(folder: Path, case: Case, dtype: torch.dtype) -> Answer:
    """After each token of a text: how far it is with its words, and what would bring it further."""
    words = case["options"]["force_words_ids"]
    state = ConstraintListState(
        [DisjunctiveConstraint(word) if isinstance(word[0], list) else PhrasalConstraint(word) for word in words]
    )
    seen = []
    for length in range(len(case["tokens"]) + 1):
        state.reset(case["tokens"][:length])
        seen.append([state.completed, state.get_bank(), state.advance()])
        if state.completed:  # which the next reset would not take back
            break
    return {"states": seen}


KINDS: dict[str, Callable[[Path, Case, torch.dtype], Answer]] = {"groups": beams, "progress": progress, "words": words}
"""How each kind of case is answered."""


def agree(single: Answer, double: Answer) -> bool:
    """The same answer, and scores that rounding hardly touches."""
    same = all(single[name] == double[name] for name in single if name != "scores")
    pairs = zip(single.get("scores", []), double.get("scores", []), strict=True)
    return same and all(abs(one - other) <= HARDLY for one, other in pairs)


def main() -> None:
    """Every case in float32. One that float64 answers otherwise is left out: rounding would decide it.
    So is one without a text."""
    folder, asked = Path(sys.argv[1]), json.load(sys.stdin)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    answered = {}
    for name, case in asked.items():
        single, double = (KINDS[case["kind"]](folder, case, dtype) for dtype in (torch.float32, torch.float64))
        if agree(single, double) and single.get("texts") != []:
            answered[name] = single
        else:
            print(f"{name} is left out", file=sys.stderr)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    json.dump({"versions": versions, "answers": answered}, sys.stdout)


if __name__ == "__main__":
    main()
