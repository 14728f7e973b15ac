"""`tokenize` as it is typed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from bloomery.cli import main
from bloomery.data.tokenize import tokenize
from bloomery.data.tokens import TokenFile, read_tokens
from bloomery.hub.resolve import BUILT_IN
from megatron import read_documents

TEXTS = ["It was the best of times,", "it was the worst of times.", "naïve — 東京"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [json.dumps({"text": text, "title": f"No. {number}"}) for number, text in enumerate(TEXTS)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return tmp_path / "rows.jsonl"


def test_the_ids_are_those_of_transformers(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", str(rows), "--tokenizer", "dickens", "--to", str(tmp_path / "new" / "out")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'new' / 'out'}\n"
    assert "documents end with token 2, </s>" in err
    assert "3 documents" in err
    assert "docs/s" in err
    assert "MB/s" in err
    theirs = AutoTokenizer.from_pretrained(BUILT_IN["dickens"])
    assert read_documents(tmp_path / "new" / "out") == [[*theirs(text).input_ids, 2] for text in TEXTS]


def test_keys_eod_and_json(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--tokenizer", str(BUILT_IN["dickens"] / "tokenizer.json"), "--keys", "title, text", "--eod", "<pad>"]
    assert main(["tokenize", str(rows), "--to", str(tmp_path / "out"), *words, "--json", "--jobs", "2"]) == 0
    row = json.loads(capsys.readouterr().out)
    found = read_documents(tmp_path / "out")
    assert (row["documents"], row["tokens"], row["eod"]) == (3, sum(map(len, found)), 3)
    backend = Tokenizer.from_file(str(BUILT_IN["dickens"] / "tokenizer.json"))
    assert [backend.decode(ids[:-1]) for ids in found] == [f"No. {n}\n{text}" for n, text in enumerate(TEXTS)]
    assert {ids[-1] for ids in found} == {3}


def test_the_same_command_again_says_that_it_is_done(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tokenize", str(rows), "--tokenizer", "dickens", "--to", str(tmp_path / "out")]
    assert main(command) == main(command) == 0
    assert "holds these files already" in capsys.readouterr().err


def test_merge(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        assert main(["tokenize", str(rows), "--tokenizer", "dickens", "--to", str(tmp_path / name)]) == 0
    capsys.readouterr()
    words = [str(tmp_path / "a"), str(tmp_path / "b.idx")]
    assert main(["tokenize", *words, "--merge", "--to", str(tmp_path / "c")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'c'}\n"
    assert "6 documents" in err
    assert read_documents(tmp_path / "c") == 2 * read_documents(tmp_path / "a")


def test_a_tokenizer_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("the miller sold three loaves in London, a clerk lost the silver spoon " * 20)
    words = ["--train-tokenizer", "--vocab-size", "300", "--to", str(tmp_path / "out")]
    assert main(["tokenize", str(tmp_path / "a.txt"), *words]) == 0
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out.tokenizer")
    assert len(theirs) == 300
    (ids,) = read_documents(tmp_path / "out")
    assert ids[-1] == theirs.eos_token_id
    assert theirs.decode(ids[:-1]) == (tmp_path / "a.txt").read_text()
    words = ["--tokenizer", str(tmp_path / "out.tokenizer"), "--to", str(tmp_path / "more")]
    assert main(["tokenize", str(tmp_path / "a.txt"), *words]) == 0
    ours, more = read_tokens(tmp_path / "out").about, read_tokens(tmp_path / "more").about
    assert ours is not None
    assert more is not None
    assert ours.tokenizer_sha256 == more.tokenizer_sha256
    assert ours.bin_sha256 == more.bin_sha256


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "bloomery tokenize SOURCE… --to PREFIX"),
        (["ROWS"], "bloomery tokenize SOURCE… --to PREFIX"),
        (["ROWS", "--to", "OUT"], "no tokenizer: name one with --tokenizer"),
        (["ROWS", "--to", "OUT", "--train-tokenizer"], "needs --vocab-size"),
        (["ROWS", "--to", "OUT", "--tokenizer", "dickens", "--vocab-size", "300"], "--vocab-size is for"),
        (["ROWS", "--to", "OUT", "--tokenizer", "dickens", "--train-tokenizer"], "--tokenizer has no meaning beside"),
        (["ROWS", "--to", "OUT", "--merge", "--jobs", "2"], "--jobs has no meaning beside --merge"),
        (["ROWS", "--to", "OUT", "--merge", "--offline"], "--offline has no meaning beside --merge"),
        (["ROWS", "--to", "OUT", "--merge"], "rows.jsonl.idx cannot be read"),
        (["ROWS", "--to", "OUT", "--tokenizer", "dickens", "--jobs", "0"], "jobs is 0: give 1 or more"),
        (["ROWS", "--to", "OUT", "--tokenizer", "dickens", "--keys", "text,"], "holds an empty name"),
        (["ROWS", "--to", "OUT", "--tokenizer", "dickens", "--keys", "body"], "field 'body' is not there"),
        (["ROWS", "--to", "OUT", "--tokenizer", "dickens", "--eod", "<end>"], "no token <end> to end documents"),
        (["ROWS", "--to", "OUT", "--tokenizer", "dickens", "--revision", "x"], "revision"),
        (["ROWS", "--to", "OUT", "--tokenizer", "no/such/model"], "no/such/model"),
        (["ROWS", "--to", "OUT", "--tokenizer", "FOLDER"], "has no tokenizer"),
        (["no-*.txt", "--to", "OUT", "--tokenizer", "dickens"], "no file matches 'no-*.txt'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    words: list[str], said: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"ROWS": str(rows), "OUT": str(tmp_path / "out"), "FOLDER": str(tmp_path)}
    assert main(["tokenize", *(places.get(word, word) for word in words)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert said in err[-1]
    assert err[-1].startswith("bloomery: error: ")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_wish_to_stop_is_answered_and_what_it_meant_before_comes_back(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    monkeypatch.setattr("bloomery.cli.tokenize.tokenize", lambda *_, **__: os.kill(os.getpid(), number))
    assert main(["tokenize", str(rows), "--tokenizer", "dickens", "--to", str(tmp_path / "out")]) == 3
    said = f"stopped by {'Ctrl-C' if name == 'SIGINT' else name}; what is done is kept, and the same command goes on"
    assert said in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_so_as_under_nohup(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hung_up(*arguments: Any, **options: Any) -> TokenFile:
        os.kill(os.getpid(), signal.SIGHUP)
        return tokenize(*arguments, **options)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr("bloomery.cli.tokenize.tokenize", hung_up)
        assert main(["tokenize", str(rows), "--tokenizer", "dickens", "--to", str(tmp_path / "out")]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_name_of_a_file_stands_for_its_prefix(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.bin", "a.idx", "a"):
        assert main(["tokenize", str(rows), "--tokenizer", "dickens", "--to", str(tmp_path / name)]) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'a'}\n"
    words = [str(tmp_path / "a.bin"), str(tmp_path / "a"), "--merge", "--to", str(tmp_path / "c.idx")]
    assert main(["tokenize", *words]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'c'}\n"
    assert {file.name for file in tmp_path.glob("*.*")} - {rows.name} == {
        f"{name}.{suffix}" for name in "ac" for suffix in ("bin", "idx", "json")
    }
    words = ["--train-tokenizer", "--vocab-size", "300", "--to", str(tmp_path / "d.bin")]
    (tmp_path / "text").write_text("the miller sold three loaves in London, a clerk lost the silver spoon " * 20)
    assert main(["tokenize", str(tmp_path / "text"), *words]) == 0
    assert (tmp_path / "d.tokenizer").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["all", "one"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_stop_keeps_what_is_done_and_the_same_command_goes_on(tmp_path: Path, name: str, to: str) -> None:
    line = json.dumps({"text": " ".join(TEXTS) * 20}) + "\n"
    (tmp_path / "rows.jsonl").write_text(line * 40_000)
    command = [sys.executable, "-m", "bloomery", "tokenize", str(tmp_path / "rows.jsonl"), "--tokenizer", "dickens"]
    command += ["--to", str(tmp_path / "out"), "--jobs", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    journal = tmp_path / ".out.unfinished" / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.01)
    if to == "all":  # as a terminal does
        os.killpg(process.pid, getattr(signal, name))
    else:
        process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3
    assert err.splitlines()[-1].endswith("the same command goes on from there")
    assert "Traceback" not in err
    assert not (tmp_path / "out.idx").exists()
    assert journal.stat().st_size > 0
