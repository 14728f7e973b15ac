"""Diverse and constrained beams against transformers 4.55.4, which still has them: it answered in tests/oracles."""

import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from bloomery import LLM, SamplingParams
from bloomery.completion import Completion
from bloomery.engine.words import none_of
from oracles.cases import ENDS, answers, cases
from tiny import Tiny

ASKED, ANSWERED = cases(), answers()
NAMES = sorted(name for name, answer in ANSWERED["answers"].items() if "texts" in answer)
PROGRESS = sorted(name for name, answer in ANSWERED["answers"].items() if "states" in answer)


@pytest.fixture(scope="module")
def models(tiny: Callable[[str], Tiny], tmp_path_factory: pytest.TempPathFactory) -> dict[str, LLM]:
    """The models that transformers was asked about, and no others."""
    return {name: _llm(tiny(name), tmp_path_factory.mktemp(name)) for name in ENDS}


def _llm(tiny: Tiny, folder: Path) -> LLM:
    digest = sha256()
    for name, parameter in sorted(tiny.model.named_parameters()):
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    assert digest.hexdigest() == ANSWERED["weights"][tiny.shape.name]["sha256"], "another model was asked about"
    shutil.copytree(tiny.path, folder, dirs_exist_ok=True)
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {ENDS[tiny.shape.name]}}}')
    return LLM(folder, max_batch_size=24)


def expect(name: str, ours: list[Completion]) -> None:
    """The texts and scores of a case."""
    case, answer = ASKED[name], ANSWERED["answers"][name]
    texts, scores, ends = answer["texts"], answer["scores"], ENDS[case["shape"]]
    # Fewer are those with all words; ours has no others, and so perhaps more of them.
    if len(texts) == case["options"]["num_return_sequences"]:
        assert len(ours) == len(texts)
    best = ours[: len(texts)]
    # Whichever end of sequence was chosen, it writes the first.
    assert [[ends[0] if token in ends else token for token in one.token_ids] for one in best] == texts
    assert [one.score for one in best] == pytest.approx(scores, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_texts_and_scores_are_those_of_transformers_4(models: dict[str, LLM], name: str) -> None:
    case = ASKED[name]
    expect(name, models[case["shape"]].generate([case["prompt"]], SamplingParams(**case["options"])))


def test_what_was_asked_covers_groups_words_ends_and_full_texts() -> None:
    found = [(ASKED[name], ANSWERED["answers"][name]["texts"]) for name in NAMES]
    for kind in ("groups", "words"):
        lengths = [len(text) for case, texts in found if case["kind"] == kind for text in texts]
        assert {20} < set(lengths)  # some end in the middle
        assert {case["shape"] for case, _ in found if case["kind"] == kind} == set(ENDS)
    assert ANSWERED["versions"]["transformers"] == "4.55.4"


@pytest.mark.parametrize("name", PROGRESS)
def test_the_way_through_words_is_that_of_transformers_4(name: str) -> None:
    case, states = ASKED[name], ANSWERED["answers"][name]["states"]
    params = SamplingParams(num_beams=2, **case["options"])
    progress, tokens = none_of(params.force_words_ids), iter(case["tokens"])
    for met, bank, wanted in states:
        assert (progress.met, progress.bank, progress.wanted() or None) == (met, bank, wanted)
        progress = progress.after(next(tokens, 0))
