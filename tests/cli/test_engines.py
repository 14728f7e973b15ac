"""`bloomery generate --engine transformers` as a person meets it."""

import json
from dataclasses import fields

import pytest

from bloomery.cli import generate, main
from bloomery.cli.generate import ANY_ENGINE
from bloomery.cli.models import REFERENCE_TAKES
from bloomery.cli.options import GenerateOptions
from bloomery.engine.options import EngineOptions
from bloomery.errors import UsageError
from bloomery.reference import engine as reference
from talker import build_talker


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(build_talker(tmp_path_factory.mktemp("engines") / "talker"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BLOOMERY_CACHE_DIR", str(tmp_path / "cache"))


def run(capsys, *argv):
    code = main(list(argv))
    out, err = capsys.readouterr()
    return code, out, err


def on_both(capsys, *argv):
    return [run(capsys, "generate", *argv, "--engine", engine) for engine in ("bloomery", "transformers")]


def test_both_engines_print_the_same_text_and_stderr_says_which_ran(capsys, folder):
    argv = ("the cat", "a dog", "--model", folder, "--max-new-tokens", "12")
    (code, out, err), (other_code, other_out, other_err) = on_both(capsys, *argv)
    assert (code, out) == (other_code, other_out)
    assert code == 0
    assert "transformers" not in err
    assert other_err.startswith("bloomery: engine: transformers 5")
    assert "float32 on cpu, one prompt at a time" in other_err
    assert "tok/s" in other_err
    assert "weights read" not in other_err  # what it reads is not known


def test_json_has_the_same_fields_from_both_engines(capsys, folder):
    argv = ("the cat", "--model", folder, "--max-new-tokens", "5", "--num-beams", "2", "--logprobs", "1", "--json")
    ours, theirs = (json.loads(out) for _, out, _ in on_both(capsys, *argv))
    assert list(ours) == list(theirs)
    assert list(ours["timings"]) == list(theirs["timings"])
    assert ours["token_ids"] == theirs["token_ids"]
    assert list(ours["logprobs"][0]) == list(theirs["logprobs"][0])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--max-batch-size", "3"], "--max-batch-size is not for --engine transformers: it runs one prompt at a time"),
        (["--shape", "bloom-560m"], "--shape is not for --engine transformers: write the weights by"),
        (["--adapter", "x"], "--adapter is not for --engine transformers: merge it by 'bloomery export --adapter'"),
        (["--presence-penalty", "1"], "--engine transformers does not take presence_penalty: drop it, or"),
        (["--best-of", "2", "--temperature", "1"], "--engine transformers does not take best_of: drop it, or"),
    ],
)
def test_what_the_other_engine_has_not_is_refused_in_one_line_before_a_model_is_loaded(
    capsys, folder, monkeypatch, argv, said
):
    monkeypatch.setattr(reference, "load_model", lambda *_: pytest.fail("loaded for nothing"))
    options = [] if "--shape" in argv else ["--model", folder]
    code, out, err = run(capsys, "generate", "the cat", "--engine", "transformers", *options, *argv)
    assert (code, out) == (2, "")
    assert err.startswith(f"bloomery: error: {said}")
    assert err.count("\n") == 1


OTHERS = [
    field.name
    for options in (GenerateOptions, EngineOptions)
    for field in fields(options)
    if field.name not in REFERENCE_TAKES | ANY_ENGINE
]


@pytest.mark.parametrize("name", OTHERS)
def test_no_option_of_the_command_line_is_ignored_by_the_other_engine(folder, name):
    running = EngineOptions()
    options = GenerateOptions(
        prompts=("x",), model=folder, engine="transformers", shape="s" if "seed" in name else None, running=running
    )
    object.__setattr__(running if hasattr(running, name) else options, name, "asked for")  # whatever it is
    with pytest.raises(UsageError, match="is not for --engine transformers"):
        generate.run(options)


def test_an_engine_that_there_is_not_is_refused(capsys):
    assert 'Choose from: "bloomery", "transformers"' in run(capsys, "generate", "x", "--engine", "gpt")[2]


def test_a_recipe_may_name_the_engine(capsys, folder, tmp_path):
    recipe = tmp_path / "vanilla.toml"
    recipe.write_text(f'model = "{folder}"\nmax_new_tokens = 3\nengine = "transformers"\n')
    code, _, err = run(capsys, "generate", "the cat", "--recipe", str(recipe))
    assert code == 0
    assert "engine: transformers" in err
