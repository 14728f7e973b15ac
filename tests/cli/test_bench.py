"""`bloomery bench`: figures with what they were measured on, from either engine, and refusals in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from bloomery.cli import main

SMALL = ("--prompt-length", "6", "--new-tokens", "5", "--rounds", "2")


def figures(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["bench", *argv, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_latency_says_what_was_measured_and_on_what(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    to = tmp_path / "new" / "figures.json"
    found = figures(capsys, "latency", *SMALL, "--batch", "3", "--to", str(to), "--warmup", "--shapes", "static")
    assert json.loads(to.read_text()) == found
    measured, phases = found["measured"], found["phases"]
    assert measured["tokens"] == 2 * 3 * 5
    assert measured["first_token"]["count"] == 2 * 3
    assert measured["per_token"]["count"] == 2 * 3 * 4
    assert set(phases) == {"import", "load", "every shape once", "first round", "text, a token"}
    assert all(value > 0 for value in phases.values())
    assert found["running"]["max_batch_size"] == found["batch"] == 3
    assert found["running"]["shapes"] == "static"
    assert {"cpu", "caches", "threads", "load at start", "torch"} <= set(found["machine"])
    assert 0 < found["memory"]["share"] < 2


def test_a_cache_in_8_bits_is_measured_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    plain, rounded = (
        figures(capsys, "latency", *SMALL, *more) for more in (("--cache-dtype", "float32"), ("--cache-dtype", "int8"))
    )
    assert rounded["running"]["cache_dtype"] == "int8"
    size = 64  # of a head of dickens: numbers, and the bytes of a scale
    kv = "KV (bytes a step)"
    assert rounded["memory"][kv] * 4 * size == plain["memory"][kv] * (size + 4)


def test_throughput_runs_more_requests_than_seats(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, "throughput", *SMALL, "--batch", "2", "--requests", "7")
    assert found["measured"]["tokens"] == 2 * 7 * 5
    assert found["measured"]["request"]["count"] == 2 * 7
    assert found["running"]["max_batch_size"] == 2
    assert found["phases"]["every shape once"] is None


def test_transformers_is_measured_by_the_same_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, "latency", *SMALL, "--engine", "transformers")
    assert found["engine"].startswith("transformers ")
    assert found["measured"]["tokens"] == 2 * 5
    assert found["measured"]["first_token"]["count"] == found["measured"]["per_token"]["count"] == 2
    assert found["measured"]["first_token"]["median"] < found["measured"]["request"]["median"]
    assert (found["memory"], found["running"]) == ({}, None)


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "latency", "dickens", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("dickens · bfloat16 on cpu · bloomery · ")
    assert lines[1] == "2 rounds of 1 texts, 1 at once, 6 + 5 tokens"
    assert [line[:17].strip() for line in lines[2:]] == [
        "first token",
        "per token",
        "request",
        "tokens per second",
        "read a step",
        "phases",
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("latency", "--batch", "0"), "batch is 0: give at least 1"),
        (("latency", "--new-tokens", "0"), "new_tokens is 0: give at least 1"),
        (("throughput", "--requests", "-1"), "requests is -1: give at least 1"),
        (("latency", "--max-batch-size", "3"), "max_batch_size 3 is --batch here, which is 1: drop it"),
        (("latency", "--shape-seed", "3"), "--shape-seed is for --shape: for the prompts, give --seed"),
        (("throughput", "--engine", "transformers"), "--engine transformers runs one prompt at a time: give --batch 1"),
        (("latency", "--engine", "transformers", "--compile"), "--compile is not for --engine transformers"),
        (("latency", "--prompt-length", "9999"), "the prompt has 9999 tokens"),
        (("latency", *SMALL, "--to", "/proc/nowhere/x.json"), "/proc/nowhere/x.json cannot be written"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    argv: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *argv]) == 2
    out, err = capsys.readouterr()
    assert said in err.splitlines()[-1]
    assert out == ""
