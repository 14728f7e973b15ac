"""Speculative decoding beside transformers' own: assisted generation and prompt lookup give the same tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch

from adapted import adapt, prompt
from bloomery import LLM, SamplingParams
from drafted import Pair, build_pair
from tiny import Tiny

NEW = 48


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return build_pair(tmp_path_factory.mktemp("assisted"))


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(4, 400, (n,), generator=generator).tolist() for n in (9, 70, 1, 64)]


def theirs(pair: Pair, prompt: list[int], **options: Any) -> list[int]:
    ids = torch.tensor([prompt])
    given = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0, "eos_token_id": [2, 3]} | options
    return pair.model.generate(ids, attention_mask=torch.ones_like(ids), **given)[0, len(prompt) :].tolist()


def test_a_draft_gives_the_tokens_of_assisted_generation(pair: Pair) -> None:
    llm = LLM(pair.path, dtype="float32", draft=pair.draft_path, max_batch_size=4)
    found = llm.generate(prompts(), SamplingParams(max_new_tokens=NEW))
    assert [list(one.token_ids) for one in found] == [
        theirs(pair, prompt, assistant_model=pair.draft) for prompt in prompts()
    ]
    speculations = [one.speculation for one in found if one.speculation is not None]
    assert len(speculations) == len(found)
    proposed, accepted = (sum(getattr(one, name) for one in speculations) for name in ("proposed", "accepted"))
    assert 0.3 * proposed < accepted < proposed
    assert sum(one.steps for one in speculations) < 0.7 * sum(len(one.token_ids) for one in found)
    for one in found:
        assert one.speculation is not None
        assert len(one.token_ids) <= one.speculation.accepted + one.speculation.steps


@pytest.mark.parametrize("longest", [1, 2, 4])
def test_look_ups_give_the_tokens_of_prompt_lookup(pair: Pair, longest: int) -> None:
    llm = LLM(pair.path, dtype="float32", max_batch_size=4)
    options = {"prompt_lookup_num_tokens": 7, "max_matching_ngram_size": longest}
    texts = [prompt[:12] * 5 for prompt in prompts()]
    found = llm.generate(texts, SamplingParams(max_new_tokens=NEW, **options))
    assert [list(one.token_ids) for one in found] == [theirs(pair, text, **options) for text in texts]
    assert sum(one.speculation.proposed for one in found if one.speculation) > 0


def test_virtual_tokens_stand_before_the_models_texts_and_not_before_the_drafts(pair: Pair, tmp_path: Path) -> None:
    adapter = adapt(Tiny(pair.shape, pair.path, pair.model), tmp_path / "adapter", prompt(70))
    params = SamplingParams(max_new_tokens=NEW)
    plain, drafted = (
        LLM(pair.path, dtype="float32", adapter=adapter.path, draft=draft).generate(prompts(), params)
        for draft in (None, pair.draft_path)
    )
    assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]
    assert sum(one.speculation.accepted for one in drafted if one.speculation) > 0
