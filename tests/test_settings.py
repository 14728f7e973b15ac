"""Lists on the command line and in the environment: entry by entry, or as a recipe writes them."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bloomery.cli import main

RECIPE = """
[data]
train = ["x", "y"]
valid = ["v"]
skip = ["1-2"]
[run]
out = "out"
profile = [5, 6]
[model]
family = "bloom"
"""
Resolved = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


@pytest.fixture
def resolved(recipe: Path, capsys: pytest.CaptureFixture[str]) -> Resolved:
    """The options that words, behind a recipe, come to."""

    def resolve(*words: str) -> dict[str, Any]:
        assert main(["train", str(recipe), "--print-config", *words]) == 0
        return tomllib.loads(capsys.readouterr().out)

    return resolve


LISTS = [
    (["--data.train", "a"], "data", "train", ["a"]),
    (["--data.train", "a", "--data.train", "b c"], "data", "train", ["a", "b c"]),
    (["--data.train", '["a","b"]'], "data", "train", ["a", "b"]),
    (["--data.train", " ['a',\n'b',] # both"], "data", "train", ["a", "b"]),
    (["--data.train", "a", "--data.train", '["b", "c"]'], "data", "train", ["a", "b", "c"]),
    (["--data.train", "[ab]*.txt"], "data", "train", ["[ab]*.txt"]),  # a pattern of files
    (["--data.train", '["a"]\nkeys = 1'], "data", "train", ['["a"]\nkeys = 1']),
    (["--data.train", '["[ab]*.txt", "[]", ""]'], "data", "train", ["[ab]*.txt", "[]", ""]),
    (["--data.skip", ""], "data", "skip", []),
    (["--data.skip="], "data", "skip", []),
    (["--data.skip", "[]"], "data", "skip", []),
    (["--run.profile", ""], "run", "profile", []),
    (["--run.profile", "[]"], "run", "profile", []),
    (["--run.profile", "[2, 3]"], "run", "profile", [2, 3]),
    (["--run.profile", "2", "--run.profile", "3"], "run", "profile", [2, 3]),
    (["--data.weights", "[0.25, 1_000]"], "data", "weights", [0.25, 1000.0]),
]


@pytest.mark.parametrize(("words", "section", "name", "expected"), LISTS, ids=lambda value: str(value)[:40])
def test_a_list_is_given_entry_by_entry_or_as_an_array(
    resolved: Resolved, words: list[str], section: str, name: str, expected: list[Any]
) -> None:
    assert resolved(*words)[section][name] == expected


def test_an_empty_list_takes_the_place_of_the_recipes(resolved: Resolved) -> None:
    for empty in ("", "[]"):
        data = resolved("--data.valid", empty, "--data.split", "9,1")["data"]
        assert (data["valid"], data["split"], data["train"]) == ([], "9,1", ["x", "y"])


@pytest.mark.parametrize(("value", "expected"), [('["a", "b"]', ["a", "b"]), ("a b", ["a b"]), ("", None)])
def test_a_variable_of_the_environment_is_read_in_the_same_way(
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    value: str,
    expected: list[str] | None,
) -> None:
    monkeypatch.setenv("BLOOMERY_DATA_TRAIN", value)
    assert main(["train", str(recipe), "--print-config"]) == (2 if expected is None else 0)
    out, err = capsys.readouterr()
    if expected is None:
        assert "data.train names no file" in err
    else:
        assert tomllib.loads(out)["data"]["train"] == expected


def test_an_entry_of_a_recipe_is_what_it_says(resolved: Resolved, recipe: Path) -> None:
    recipe.write_text(RECIPE.replace('train = ["x", "y"]', """train = ['["a","b"]', "", "[]"]"""))
    assert resolved()["data"]["train"] == ['["a","b"]', "", "[]"]


@pytest.mark.parametrize("value", ["[1, ", "[2.5, 3]", "[true, 2]", "[[1, 2]]", '["a", 2]', "[{a = 1}, 2]"])
def test_what_is_no_list_of_such_values_is_refused_in_one_line(
    recipe: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    assert main(["train", str(recipe), "--print-config", "--run.profile", value]) == 2
    err = capsys.readouterr().err
    assert "--run.profile" in err
    assert err.count("\n") == 1


def test_a_text_for_a_model_is_never_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--prompts", '["a"]', "--prompts", ""], ['["a"]', ""]):
        assert main(["generate", *words, "--print-config"]) == 0
        assert tomllib.loads(capsys.readouterr().out)["prompts"] == ['["a"]', ""]
    assert main(["generate", "x", "--stop-strings", "[1]", "--stop-strings", "[]", "--print-config"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["stop_strings"] == ["[1]", "[]"]
    assert main(["generate", "x", "--stop-strings", ""]) == 2
    assert "a stop string is empty" in capsys.readouterr().err
