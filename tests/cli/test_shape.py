"""`--shape`: a random model on the command line, generated from and converted, or refused in one line."""

import json
from pathlib import Path

import pytest

from bloomery import LLM, SamplingParams
from bloomery.cli import main

TINY = {
    "model_type": "bloom",
    "vocab_size": 400,
    "n_embed": 32,
    "n_layer": 2,
    "num_attention_heads": 4,
    "seq_length": 64,
}
TALK = ("--max-new-tokens", "6", "--temperature", "1", "--seed", "3")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOOMERY_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def shape(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    return str(tmp_path / "config.json")


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a wrong command gives."""
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert err.startswith("bloomery: error: ")
    return err


def test_shape_talks_as_its_seed_has_it(capsys: pytest.CaptureFixture[str], shape: str) -> None:
    params = SamplingParams(max_new_tokens=6, temperature=1.0, seed=3)
    texts = []
    for seed in ("0", "7"):
        code, out, _ = run(capsys, "generate", "Hi", "--shape", shape, "--shape-seed", seed, *TALK)
        assert code == 0
        assert out == LLM(shape=shape, seed=int(seed)).generate("Hi", params)[0].text + "\n"
        texts.append(out)
    assert texts[0] != texts[1]
    assert run(capsys, "generate", "Hi", "--shape", shape, *TALK)[1] == texts[0]


def test_store_of_a_shape_talks_as_the_shape(capsys: pytest.CaptureFixture[str], shape: str, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    code, out, _ = run(capsys, "convert", "--shape", shape, "--shape-seed", "7", store, "--dtype", "float32")
    assert (code, out) == (0, store + "\n")
    said = run(capsys, "generate", "Hi", "--model", store, *TALK)[1]
    assert said == run(capsys, "generate", "Hi", "--shape", shape, "--shape-seed", "7", "--dtype", "float32", *TALK)[1]


def test_small_vocabulary_takes_ids(capsys: pytest.CaptureFixture[str], shape: str) -> None:
    Path(shape).write_text(json.dumps(TINY | {"vocab_size": 100}))
    assert "--ids" in refused(capsys, "generate", "Hi", "--shape", shape)
    code, out, _ = run(capsys, "generate", "5 6", "--ids", "--shape", shape, *TALK)
    assert code == 0
    assert len(out.split()) == 6


@pytest.mark.parametrize(
    ("argv", "fragment"),
    [
        (["generate", "Hi", "--shape", "bloom-56m"], "'bloom-560m'"),
        (["generate", "Hi", "--shape", "gpt2", "--model", "elsewhere"], "give one of them"),
        (["generate", "Hi", "--shape-seed", "3"], "--shape"),
        (["convert", "--shape", "gpt2"], "TARGET"),
        (["convert", "--shape", "gpt2", "a", "b"], "TARGET"),
        (["convert", "--shape", "bloom-56m", "b"], "'bloom-560m'"),
        (["convert", "dickens", "b", "--shape-seed", "3"], "--shape"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_command_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], fragment: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fragment in refused(capsys, *argv)
    assert list(tmp_path.iterdir()) == []
