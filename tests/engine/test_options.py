"""EngineOptions: what cannot be is refused in one line, what is given is kept, and every way in has all of them."""

import re
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloomery import LLM, UsageError
from bloomery.cli import main
from bloomery.engine.options import EngineArguments, EngineOptions, GraphsKind
from conftest import Tiny


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_batch_size": 0}, "max_batch_size is 0: give at least 1"),
        ({"max_batch_size": None}, "max_batch_size is None: give a whole number"),
        ({"max_batch_size": True}, "max_batch_size is True: give a whole number"),
        ({"max_step_tokens": 0}, "max_step_tokens is 0: give at least 1"),
        ({"max_step_tokens": 2.0}, "max_step_tokens is 2.0: give a whole number"),
        ({"max_seq_len": -1}, "max_seq_len is -1: give at least 1, or leave it out"),
        ({"cache_positions": 0}, "cache_positions is 0: give at least 1, or leave it out"),
        ({"cache_dtype": "int4"}, "cache_dtype 'int4' is not one of: auto, float32, bfloat16, float16, int8"),
        ({"softmax_dtype": "int8"}, "softmax_dtype 'int8' is not one of: auto, float32, bfloat16"),
        ({"softmax_dtype": "float16"}, "softmax_dtype 'float16' is not one of: auto, float32, bfloat16"),
        ({"shapes": "ragged"}, "shapes 'ragged' is not one of: static, bucket, dynamic"),
        ({"shapes": "bucket", "bucket": 1}, "bucket is 1: give at least 2, or shapes dynamic, which pads nothing"),
        ({"bucket": 64}, "bucket 64 and shapes dynamic contradict each other: drop bucket, or give shapes bucket"),
        ({"bucket": 64, "shapes": "static"}, "bucket 64 and shapes static contradict each other"),
        ({"graphs": True}, "graphs 'True' is not one of: off, lazy, all"),
        ({"compile": "yes"}, "compile is 'yes': give True or False"),
        ({"warmup": 3}, "warmup is 3: give True or False"),
        ({"exact_activations": 0}, "exact_activations is 0: give True or False"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}") as refusal:
        EngineOptions(**wrong)
    assert "\n" not in str(refusal.value)


GIVEN: EngineArguments = {
    "max_seq_len": 256,
    "max_batch_size": 2,
    "max_step_tokens": 96,
    "cache_positions": 320,
    "cache_dtype": "int8",
    "softmax_dtype": "float32",
    "shapes": "bucket",
    "bucket": 48,
    "graphs": "lazy",
    "compile": True,
    "warmup": True,
    "exact_activations": True,
    "huge_pages": True,
}


def test_no_option_rewrites_another() -> None:
    assert asdict(EngineOptions(**GIVEN)) == GIVEN
    assert set(GIVEN) == {field.name for field in fields(EngineOptions)} == set(EngineArguments.__annotations__)


def test_numbers_of_other_libraries_are_whole_numbers() -> None:
    options = EngineOptions(max_batch_size=np.int64(3))
    assert (type(options.max_batch_size), options) == (int, EngineOptions(max_batch_size=3))


def test_recipe_environment_and_command_line_have_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    written = ('shapes = "bucket"', "bucket = 48", "max_seq_len = 256", "max_batch_size = 2", "compile = true")
    recipe.write_text("\n".join((*written, "exact_activations = true", "huge_pages = true")))
    monkeypatch.setenv("BLOOMERY_CACHE_DTYPE", "int8")
    monkeypatch.setenv("BLOOMERY_WARMUP", "true")
    monkeypatch.setenv("BLOOMERY_SOFTMAX_DTYPE", "float32")
    words = ["--max-step-tokens", "96", "--cache-positions", "320", "--graphs", "lazy"]
    assert main(["generate", "--recipe", str(recipe), "--print-config", *words]) == 0
    assert GIVEN.items() <= tomllib.loads(capsys.readouterr().out).items()


def test_a_contradiction_on_the_command_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", "--bucket", "64"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "drop bucket, or give shapes bucket" in said[0]


def test_an_unknown_option_of_the_engine_is_no_keyword(bloom: Tiny) -> None:
    with pytest.raises(TypeError, match="bukcet"):
        LLM(bloom.path, bukcet=64)  # type: ignore[call-arg]


@pytest.mark.parametrize("graphs", ["lazy", "all"])
def test_graphs_are_refused_where_there_are_none(bloom: Tiny, graphs: GraphsKind) -> None:
    with pytest.raises(UsageError, match=f"^graphs {graphs}: a CPU has none; leave graphs off$"):
        LLM(bloom.path, graphs=graphs)
