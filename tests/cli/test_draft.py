"""`bloomery generate --draft` and `--prompt-lookup-num-tokens` as a person meets them."""

import json
import re
from pathlib import Path

import pytest

from bloomery import LLM, SamplingParams
from bloomery.cli import main
from drafted import Pair, build_pair

OPTIONS = ("--max-new-tokens", "40", "--ignore-eos", "--dtype", "float32")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return build_pair(tmp_path_factory.mktemp("draft"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOOMERY_CACHE_DIR", str(tmp_path / "cache"))


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["generate", *argv, *OPTIONS])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_closing_line_says_what_the_draft_brought(capsys: pytest.CaptureFixture[str], pair: Pair) -> None:
    code, out, err = run(capsys, "the cat", "--model", str(pair.path), "--draft", str(pair.draft_path))
    assert code == 0
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    (expected,) = LLM(pair.path, dtype="float32").generate("the cat", params)
    (guessed,) = LLM(pair.path, dtype="float32", draft=pair.draft_path).generate("the cat", params)
    assert out == expected.text + "\n"
    found = guessed.speculation
    assert found is not None
    assert f"acceptance {100 * found.accepted / found.proposed:.0f} %, {40 / found.steps:.1f} tokens a step" in err
    assert re.search(r"\d tok/s · .* GB/s of weights read", err)


def test_json_has_what_was_proposed_and_accepted(capsys: pytest.CaptureFixture[str], pair: Pair) -> None:
    lookup = ("--prompt-lookup-num-tokens", "4", "--max-matching-ngram-size", "1", "--json")
    _, out, err = run(capsys, "the cat the cat the cat", "--model", str(pair.path), *lookup)
    found = json.loads(out)["speculation"]
    assert sorted(found) == ["accepted", "proposed", "steps"]
    assert 0 <= found["accepted"] <= found["proposed"] > 0
    assert "tokens a step" in err
    _, out, err = run(capsys, "the cat", "--model", str(pair.path), "--json")
    assert json.loads(out)["speculation"] is None
    assert "a step" not in err


def test_a_wrong_draft_is_one_line(capsys: pytest.CaptureFixture[str], pair: Pair) -> None:
    code, out, err = run(capsys, "the cat", "--model", str(pair.path), "--draft", "dickens")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("bloomery: error: draft ")
