"""Which drafts are taken, and which requests: everything else is refused in one line that says what to do."""

import json
import shutil
from pathlib import Path

import pytest

from bloomery import LLM, CheckpointError, SamplingParams, UsageError
from drafted import Pair, build_pair
from tiny import SHAPES, build


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return build_pair(tmp_path_factory.mktemp("draft"))


def copied(pair: Pair, to: Path) -> Path:
    shutil.copytree(pair.draft_path, to)
    return to


def refusal(pair: Pair, draft: Path | str, **options: int) -> str:
    with pytest.raises(UsageError) as refused:
        LLM(pair.path, draft=draft, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_vocabulary_of_another_size_is_refused(pair: Pair, tmp_path: Path) -> None:
    build(next(shape for shape in SHAPES if shape.name == "gpt2-tanh"), tmp_path / "other")
    said = refusal(pair, tmp_path / "other")
    assert "has a vocabulary of 512, and the model one of 777" in said
    assert "choose a draft that was trained with the model's tokenizer" in said


def test_tokens_that_stand_for_something_else_are_refused_and_named(pair: Pair, tmp_path: Path) -> None:
    draft = copied(pair, tmp_path / "swapped")
    tokenizer = json.loads((draft / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (draft / "tokenizer.json").write_text(json.dumps(tokenizer))
    said = refusal(pair, draft)
    there, here = ids["a"], ids["b"]
    assert (
        f"'a' is id {there} there and id {here} here" in said or f"'b' is id {here} there and id {there} here" in said
    )


def test_a_tokenizer_written_in_other_words_is_the_same(pair: Pair, tmp_path: Path) -> None:
    draft = copied(pair, tmp_path / "pretty")
    tokenizer = json.loads((draft / "tokenizer.json").read_text())
    (draft / "tokenizer.json").write_text(json.dumps(tokenizer, indent=4))
    assert LLM(pair.path, draft=draft).draft is not None


def test_a_draft_without_a_tokenizer_is_taken_by_its_size(pair: Pair, tmp_path: Path) -> None:
    draft = copied(pair, tmp_path / "bare")
    (draft / "tokenizer.json").unlink()
    assert LLM(pair.path, draft=draft).draft is not None


def test_a_context_that_is_too_short_is_refused(pair: Pair, tmp_path: Path) -> None:
    draft = copied(pair, tmp_path / "short")
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps(config | {"seq_length": 100}))
    said = refusal(pair, draft)
    assert "has a context of 100, the model one of 512: lower max_seq_len to that" in said
    assert LLM(pair.path, draft=draft, max_seq_len=100).generate("the", SamplingParams(max_new_tokens=3))


def test_a_draft_that_is_not_there_is_named_as_the_draft(pair: Pair, tmp_path: Path) -> None:
    assert refusal(pair, tmp_path / "nowhere").startswith("draft: ")
    draft = copied(pair, tmp_path / "damaged")
    (draft / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"^draft: .*config\.json"):
        LLM(pair.path, draft=draft)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_beams": 2}, "num_beams 2 does not go with guesses of a draft model: drop num_beams, or set num_assi"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens 3 does not go with guesses of a draft model"),
    ],
)
def test_what_a_draft_cannot_guess_for_is_refused_unless_it_is_left_out(
    pair: Pair, options: dict[str, int], said: str
) -> None:
    llm = LLM(pair.path, draft=pair.draft_path)
    with pytest.raises(UsageError, match=said):
        llm.generate("the", SamplingParams(max_new_tokens=3, **options))
    without = SamplingParams(max_new_tokens=3, num_assistant_tokens=0, **options)
    plain = LLM(pair.path).generate("the", SamplingParams(max_new_tokens=3, **options))
    assert llm.generate("the", without)[0].token_ids == plain[0].token_ids


def test_guesses_of_a_draft_that_is_not_there_are_refused(pair: Pair) -> None:
    with pytest.raises(UsageError, match="num_assistant_tokens is 4, and there is no draft model to make them"):
        LLM(pair.path).generate("the", SamplingParams(num_assistant_tokens=4))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt_lookup_num_tokens": 0}, "prompt_lookup_num_tokens is 0: give a number in"),
        ({"num_assistant_tokens": -1}, "num_assistant_tokens is -1: give a number in"),
        ({"max_matching_ngram_size": 2}, "max_matching_ngram_size would have no effect without prompt_lookup_num"),
        (
            {"max_matching_ngram_size": 33, "prompt_lookup_num_tokens": 2},
            r"max_matching_ngram_size is 33: give a number in \[1, 32\]",
        ),
        (
            {"prompt_lookup_num_tokens": 4, "num_beams": 2},
            "prompt_lookup_num_tokens 4 guesses for one text, and num_beams 2 searches: drop prompt_lookup_num_tokens",
        ),
        (
            {"prompt_lookup_num_tokens": 4, "num_assistant_tokens": 2},
            "prompt_lookup_num_tokens 4 and num_assistant_tokens 2 both guess the next tokens: drop one of them",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SamplingParams(**options)


def test_threads_and_streams_get_text_as_it_is_guessed(pair: Pair) -> None:
    llm = LLM(pair.path, draft=pair.draft_path)
    params = SamplingParams(max_new_tokens=30, stop_strings=("e",), temperature=0.5, seed=1, num_return_sequences=2)
    pieces = list(llm.stream(["the cat", "a dog"], params))
    for index in range(2):
        for choice in range(2):
            own = [piece for piece in pieces if (piece.index, piece.choice) == (index, choice)]
            assert own[-1].completion is not None
            assert "".join(piece.text for piece in own) == own[-1].completion.text
            assert "e" not in own[-1].completion.text
            assert own[-1].completion.speculation is not None
