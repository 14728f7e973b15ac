"""Speeds with guesses and without are compared on the same tokens, and the guesses are what they are called."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from drafted import build_pair

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "speculation.py"
TINY = ("--hidden", "128", "--layers", "6", "--draft-layers", "1", "--vocabulary", "600", "--quiet", "0.05")
NAMES = ["plain", "plain again", "draft", "useless draft", "plain, repeating", "prompt lookup, repeating"]


def run(to: Path, *more: str) -> subprocess.CompletedProcess[str]:
    small = ("--tokens", "60", "--rounds", "2", "--threads", "1", "--dtype", "float32", "--batch", "2")
    command = [sys.executable, str(BENCHMARK), *small, "--to", str(to), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_every_way_gives_the_same_tokens_and_guesses_are_good_or_useless_as_named(tmp_path: Path) -> None:
    ran = run(tmp_path / "results" / "tiny.json", *TINY)
    assert ran.returncode == 0, ran.stderr
    results = json.loads((tmp_path / "results" / "tiny.json").read_text())
    cases = {case["name"]: case for case in results["cases"]}
    assert list(cases) == NAMES
    for case in cases.values():
        assert case["same_tokens"]
        assert case["tokens"] == 120
        assert len(case["seconds"]) == len(case["speed_ups"]) == 2
    assert cases["plain"]["speed_ups"] == [1.0, 1.0]
    accepted, proposed = (
        {name: sum(text[what] for text in case["speculation"]) for name, case in cases.items()}
        for what in ("accepted", "proposed")
    )
    assert accepted["draft"] > 0.5 * proposed["draft"] > 0
    assert accepted["prompt lookup, repeating"] > 0
    assert accepted["useless draft"] == 0 < proposed["useless draft"]
    assert ran.stdout.count("\n") == 2 + len(NAMES)


@pytest.mark.slow
def test_models_can_be_named_and_belong_together(tmp_path: Path) -> None:
    pair = build_pair(tmp_path)
    ran = run(
        tmp_path / "named.json", "--model", str(pair.path), "--draft", str(pair.draft_path), "--prompt", "the cat"
    )
    assert ran.returncode == 0, ran.stderr
    assert all(case["same_tokens"] for case in json.loads((tmp_path / "named.json").read_text())["cases"])
    alone = run(tmp_path / "alone.json", "--model", str(pair.path))
    assert alone.returncode == 2
    assert "give both or none" in alone.stderr
