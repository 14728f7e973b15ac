"""A text ends at whichever of a folder's end-of-sequence ids comes first, wherever the folder names them."""

import json
from pathlib import Path

import pytest

from bloomery import LLM, SamplingParams
from folders import Source
from tiny import Tiny

STEPS = 24


@pytest.fixture
def ids(either: Tiny) -> list[int]:
    """What the model says without an end."""
    return either.greedy(either.prompt(12))[:STEPS]


def said(tiny: Tiny, folder: Path, **files: dict[str, object]) -> tuple[list[int], str]:
    """The tokens of a greedy text, and why it ended, with these entries in the folder's JSON files."""
    source = Source(tiny, folder)
    source.config |= files.pop("config", {})
    source.write()
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    done = LLM(folder, dtype="float32", device="cpu").generate([tiny.prompt(12)], SamplingParams(max_new_tokens=STEPS))[
        0
    ]
    return list(done.token_ids), done.finish_reason


@pytest.mark.parametrize("places", [(5, 9), (9, 5), (20, 2)])
@pytest.mark.parametrize("file", ["config", "generation_config"])
def test_first_of_several_ends_the_text(
    either: Tiny, ids: list[int], tmp_path: Path, places: tuple[int, int], file: str
) -> None:
    ends = [ids[place] for place in places]
    first = min(ids.index(end) for end in ends)
    assert said(either, tmp_path / "model", **{file: {"eos_token_id": ends}}) == (ids[: first + 1], "stop")


def test_generation_config_has_the_last_word(either: Tiny, ids: list[int], tmp_path: Path) -> None:
    files = {"config": {"eos_token_id": ids[2]}, "generation_config": {"eos_token_id": [ids[9], ids[15]]}}
    first = min(ids.index(ids[place]) for place in (9, 15))
    assert said(either, tmp_path / "model", **files) == (ids[: first + 1], "stop")


def test_ids_that_no_token_has_end_nothing(either: Tiny, ids: list[int], tmp_path: Path) -> None:
    vocabulary = either.model.config.vocab_size
    ends = [vocabulary, -1, None, vocabulary + 7]
    assert said(either, tmp_path / "model", generation_config={"eos_token_id": ends}) == (ids, "length")
