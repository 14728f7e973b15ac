"""Beam search in random configurations against transformers: two families, one end of sequence or two."""

import copy
import random
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from bloomery import LLM, SamplingParams
from tiny import Tiny

ENDS = {"bloom-6-heads": [2, 3], "llama-grouped-scaled": [2], "gpt2-gelu": [5, 6, 7]}
NEW = 16
SEEDS = range(40)


@pytest.fixture(scope="module")
def models(tiny: Callable[[str], Tiny], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[LLM, Any]]:
    """Each as ours and as theirs, which is in float64: that its fp32 rounds as ours does would be chance."""
    made = {}
    for name, ends in ENDS.items():
        folder = tmp_path_factory.mktemp(name)
        shutil.copytree(tiny(name).path, folder, dirs_exist_ok=True)
        (folder / "generation_config.json").write_text(f'{{"eos_token_id": {ends}}}')
        made[name] = LLM(folder, max_batch_size=24), copy.deepcopy(tiny(name).model).double()
    return made


def configuration(seed: int) -> tuple[str, list[list[int]], dict[str, Any]]:
    """A model, prompts of unequal lengths, and options that both understand."""
    rng = random.Random(seed)
    name = rng.choice(list(ENDS))
    beams = rng.randint(2, 6)
    options: dict[str, Any] = {
        "num_beams": beams,
        "num_return_sequences": rng.randint(1, beams),
        "length_penalty": rng.choice([1.0, 1.0, 0.0, -0.7, 0.5, 2.0]),
        "early_stopping": rng.choice([False, True, "never"]),
    }
    if rng.random() < 0.8:
        options["sequence_bias"] = [[[end], rng.choice([3.0, 5.0, 7.0])] for end in ENDS[name]]
    for option, value in {
        "repetition_penalty": 1.3,
        "encoder_repetition_penalty": 0.8,
        "no_repeat_ngram_size": 2,
        "encoder_no_repeat_ngram_size": 2,
        "min_new_tokens": 5,
        "renormalize_logits": True,
        "bad_words_ids": [[300], [200, 201]],
        "suppress_tokens": [rng.randrange(8, 400) for _ in range(20)],
        "begin_suppress_tokens": ENDS[name],
        "forced_eos_token_id": ENDS[name][0],
        "exponential_decay_length_penalty": (6, 1.1),
    }.items():
        if rng.random() < 0.2:
            options[option] = value
    return name, [rng.choices(range(8, 500), k=rng.choice([1, 4, 31, 63, 64, 65])) for _ in range(3)], options


@pytest.mark.parametrize("seed", SEEDS)
def test_any_options_give_the_texts_and_scores_of_transformers(models: dict[str, Any], seed: int) -> None:
    name, prompts, options = configuration(seed)
    llm, model = models[name]
    together = llm.generate(prompts, SamplingParams(max_new_tokens=NEW, **options))
    config = GenerationConfig(
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=ENDS[name],
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    count = options["num_return_sequences"]
    for index, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        theirs = [until_end(row, ENDS[name]) for row in out.sequences[:, len(prompt) :].tolist()]
        ours = together[count * index : count * (index + 1)]
        assert [list(one.token_ids) for one in ours] == theirs
        assert [one.score for one in ours] == pytest.approx(out.sequences_scores.tolist(), rel=1e-6, abs=1e-5)


def until_end(row: list[int], ends: list[int]) -> list[int]:
    places = [n for n, token in enumerate(row) if token in ends]
    return row[: places[0] + 1] if places else row


def test_the_configurations_cover_what_they_are_about() -> None:
    drawn = [configuration(seed) for seed in SEEDS]
    assert {name for name, _, _ in drawn} == set(ENDS)
    assert {options["early_stopping"] for _, _, options in drawn} == {True, False, "never"}
    assert any(options["num_return_sequences"] > 1 for _, _, options in drawn)
