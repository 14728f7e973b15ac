"""Tokenizing gives the same bytes alone, by many processes and after any kill; nothing half-made is ever read."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import encoders
from bloomery.data import documents, unfinished
from bloomery.data.bpe import train_tokenizer
from bloomery.data.documents import find_files
from bloomery.data.learn import learn_tokenizer
from bloomery.data.tokenize import tokenize
from bloomery.data.tokens import TokenFile, read_tokens
from bloomery.data.unfinished import Totals, folder_of
from bloomery.data.workers import encode_shards
from bloomery.errors import UsageError
from megatron import read_documents

SCRIPT = Path(__file__).parent / "tokenizing.py"
SHARD_BYTES = 200


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the 40 documents are some twenty shards."""
    monkeypatch.setattr(documents, "SHARD_BYTES", SHARD_BYTES)


@pytest.fixture
def tokenizer_file(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def written(prefix: Path) -> dict[str, bytes]:
    return {suffix: prefix.with_name(prefix.name + suffix).read_bytes() for suffix in (".bin", ".idx", ".json")}


def work(folder: Path, prefix: Path, tokenizer: Tokenizer, **options: object) -> TokenFile:
    return tokenize(find_files("x", [str(folder)]), prefix, tokenizer, eod=2, **options)  # type: ignore[arg-type]


def test_each_document_and_an_end_after_it(
    folder: Path, texts: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    seen: list[Totals] = []
    sizes: list[int] = []
    work(folder, tmp_path / "a", tokenizer, moved=lambda size, totals: (sizes.append(size), seen.append(totals)))
    expected = [[*tokenizer.encode(text).ids, 2] for text in texts if "<" not in text]
    found = read_documents(tmp_path / "a")
    assert [ids for ids, text in zip(found, texts, strict=True) if "<" not in text] == expected
    assert len(seen) > 10
    assert seen[-1].documents == len(texts)
    assert seen[-1].text_bytes == sum(sizes) == sum(len(text.encode()) for text in texts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx", "a.json", "text"]


def test_the_callers_tokenizer_stays_as_it_was(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    before = tokenizer.to_str(), tokenizer.encode("</s>").ids
    work(folder, tmp_path / "a", tokenizer)
    assert (tokenizer.to_str(), tokenizer.encode("</s>").ids) == before


def test_a_tokenizer_that_cuts_and_pads_cuts_and_pads_nothing(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = work(folder, tmp_path / "a", tokenizer).ids.tolist()
    cutting = Tokenizer.from_str(tokenizer.to_str())
    cutting.enable_truncation(3)
    cutting.enable_padding(length=400)
    assert work(folder, tmp_path / "b", cutting).ids.tolist() == whole


def test_many_processes_write_the_same_bytes(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    work(folder, tmp_path / "alone", tokenizer)
    work(folder, tmp_path / "many", tokenizer, jobs=3)
    assert written(tmp_path / "alone") == written(tmp_path / "many")


def test_results_come_in_order_however_long_each_takes() -> None:
    found = [result.ids[0] for result in encode_shards(range(20), encoders.Uneven(), 2)]  # type: ignore[arg-type]
    assert found == list(range(20))


def test_a_process_that_is_killed_is_an_error_and_not_an_endless_wait() -> None:
    with pytest.raises(UsageError, match="was killed, perhaps for lack of memory"):
        list(encode_shards(range(4), encoders.Killed(), 2))  # type: ignore[arg-type]


def test_a_fault_in_a_process_is_told_with_its_place() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: by design"):
        list(encode_shards(range(4), encoders.Faulty(), 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_file_that_is_no_text_is_named_and_what_was_done_is_kept(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path, jobs: int
) -> None:
    (folder / "99.txt").write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"99\.txt is not UTF-8 at byte 0"):
        work(folder, tmp_path / "a", tokenizer, jobs=jobs)
    assert not list(tmp_path.glob("a*"))
    assert folder_of(tmp_path / "a").is_dir()


# --- killed ----------------------------------------------------------------------------------------------------------

PLACES = ["shard:1", "shard:7", "half:4", "publish:1", "publish:2", "publish:3", "published"]


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def stopped_at(
    place: str, jobs: int, tokenizer_file: Path, folder: Path, prefix: Path, started: list[subprocess.Popen[str]]
) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), str(tokenizer_file), str(folder), str(prefix), str(jobs), place]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopped\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_after_a_kill_the_same_call_goes_on_to_the_same_bytes(
    place: str, folder: Path, tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path, started: list
) -> None:
    work(folder, tmp_path / "whole", tokenizer)
    process = stopped_at(place, 1, tokenizer_file, folder, tmp_path / "a", started)
    assert (tmp_path / "a.idx").exists() == (place == "published")  # nobody reads half a file
    process.kill()
    process.wait()
    begun: list[Totals] = []
    work(folder, tmp_path / "a", tokenizer, begun=lambda total, done, totals: begun.append(totals))
    done = {"shard:1": 1, "shard:7": 7, "half:4": 3}
    if place == "published":
        assert not begun
    else:
        whole = read_tokens(tmp_path / "whole").documents
        assert begun[0].shards == done.get(place, begun[0].shards)
        assert begun[0].documents == whole or place in done  # what was whole is not done again
    assert written(tmp_path / "a") == written(tmp_path / "whole")
    assert not folder_of(tmp_path / "a").exists()


@pytest.mark.slow
def test_processes_do_not_outlive_the_one_that_started_them(
    folder: Path, tokenizer: Tokenizer, tokenizer_file: Path, tmp_path: Path, started: list
) -> None:
    process = stopped_at("shard:3", 2, tokenizer_file, folder, tmp_path / "a", started)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.kill()
    process.wait()
    until = time.monotonic() + 60
    while alive := [child for child in children if is_alive(child)]:
        assert time.monotonic() < until, alive
        time.sleep(0.05)
    work(folder, tmp_path / "a", tokenizer, jobs=2)
    work(folder, tmp_path / "whole", tokenizer)
    assert written(tmp_path / "a") == written(tmp_path / "whole")


def is_alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def interrupted(prefix: Path, folder: Path, tokenizer: Tokenizer, after: int) -> None:
    def moved(size: int, totals: Totals) -> None:
        if totals.shards == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(folder, prefix, tokenizer, moved=moved)


@pytest.mark.parametrize("after", [1, 5])
def test_byte_order_marks_become_no_tokens_and_move_nothing(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path, after: int
) -> None:
    plain = work(folder, tmp_path / "plain", tokenizer)
    for file in folder.iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    texts = [file.read_bytes().decode("utf-8-sig") for file in sorted(folder.iterdir())]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "rows.jsonl").write_text("\ufeff" + rows, encoding="utf-8")
    interrupted(tmp_path / "marked", folder, tokenizer, after)
    marked = work(folder, tmp_path / "marked", tokenizer)
    assert marked.ids.tolist() == 2 * plain.ids.tolist()


@pytest.mark.parametrize("name", ["tokens.bin", "lengths.bin", "journal.jsonl"])
def test_what_was_written_in_part_is_cut_off(folder: Path, tokenizer: Tokenizer, tmp_path: Path, name: str) -> None:
    work(folder, tmp_path / "whole", tokenizer)
    interrupted(tmp_path / "a", folder, tokenizer, 5)
    with (folder_of(tmp_path / "a") / name).open("ab") as file:
        file.write(b"[6, 7")
    work(folder, tmp_path / "a", tokenizer)
    assert written(tmp_path / "a") == written(tmp_path / "whole")


def test_what_has_lost_its_end_is_refused(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    interrupted(tmp_path / "a", folder, tokenizer, 5)
    (folder_of(tmp_path / "a") / "tokens.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="has lost its end: delete"):
        work(folder, tmp_path / "a", tokenizer)


@pytest.mark.parametrize("change", ["file", "tokenizer", "eod"])
def test_what_is_left_of_another_job_is_not_gone_on_with(
    folder: Path, texts: list[str], tokenizer: Tokenizer, tmp_path: Path, change: str
) -> None:
    interrupted(tmp_path / "a", folder, tokenizer, 5)
    other, eod = tokenizer, 2
    if change == "file":
        (folder / "00.txt").write_text("something else")
    if change == "tokenizer":
        other = train_tokenizer(texts, 290)
    if change == "eod":
        eod = 3
    begun: list[Totals] = []
    for name in ("a", "b"):
        files = find_files("x", [str(folder)])
        tokenize(files, tmp_path / name, other, eod=eod, begun=lambda total, done, totals: begun.append(totals))
    assert begun == [Totals(), Totals()]
    assert written(tmp_path / "a") == written(tmp_path / "b")


# --- places ----------------------------------------------------------------------------------------------------------


def test_the_same_call_again_does_nothing(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    work(folder, tmp_path / "a", tokenizer)
    before = (tmp_path / "a.bin").stat().st_mtime_ns
    done = work(folder, tmp_path / "a", tokenizer, begun=lambda *_: pytest.fail("it began"))
    assert (tmp_path / "a.bin").stat().st_mtime_ns == before
    assert done.documents == 40


@pytest.mark.parametrize("suffix", ["bin", "idx", "json"])
def test_a_file_that_is_there_is_never_replaced(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path, suffix: str
) -> None:
    work(folder, tmp_path / "other", tokenizer)
    for name in ["bin", "idx", "json"] if suffix == "idx" else [suffix]:
        (tmp_path / f"a.{name}").write_bytes((tmp_path / f"other.{name}").read_bytes())
    (folder / "00.txt").write_text("something else")
    before = (tmp_path / f"a.{suffix}").read_bytes()
    with pytest.raises(UsageError, match="delete it, or choose another place"):
        work(folder, tmp_path / "a", tokenizer)
    assert (tmp_path / f"a.{suffix}").read_bytes() == before


def test_a_full_disk_is_said_in_one_line_and_the_next_call_goes_on(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(folder, tmp_path / "whole", tokenizer)
    left = 9

    class Full:
        def __getattr__(self, name: str) -> object:
            nonlocal left
            left -= name == "fsync"
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return getattr(os, name)

    with monkeypatch.context() as patched:
        patched.setattr(unfinished, "os", Full())
        with pytest.raises(UsageError, match=r"a cannot be written: No space left on device: make room") as caught:
            work(folder, tmp_path / "a", tokenizer)
    assert "\n" not in str(caught.value)
    begun: list[Totals] = []
    work(folder, tmp_path / "a", tokenizer, begun=lambda total, done, totals: begun.append(totals))
    assert begun[0].shards == 4
    assert written(tmp_path / "a") == written(tmp_path / "whole")


def test_no_document_at_all_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n \n")
    with pytest.raises(UsageError, match="no document"):
        tokenize([tmp_path / "a.jsonl"], tmp_path / "a", tokenizer, eod=2)
    assert [path.name for path in tmp_path.glob("a*")] == ["a.jsonl"]
    assert not folder_of(tmp_path / "a").exists()


def test_a_large_vocabulary_gets_wider_tokens(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    wide = json.loads(tokenizer.to_str())
    wide["added_tokens"].append({**wide["added_tokens"][0], "id": 70_000, "content": "<far>"})
    wide["model"]["vocab"]["<far>"] = 70_000
    made = tokenize(find_files("x", [str(folder)]), tmp_path / "a", Tokenizer.from_str(json.dumps(wide)), eod=70_000)
    assert made.dtype == np.int32
    assert made.largest() == 70_000
    assert (made.ids == 70_000).sum() == 40


# --- a tokenizer of its own ------------------------------------------------------------------------------------------


def test_a_learned_tokenizer_is_learned_once(folder: Path, texts: list[str], tmp_path: Path) -> None:
    files = find_files("x", [str(folder)])
    made = learn_tokenizer(files, tmp_path / "t", 300)
    assert made.to_str() == train_tokenizer(texts, 300).to_str()
    before = (tmp_path / "t" / "tokenizer.json").stat().st_mtime_ns
    assert learn_tokenizer(files, tmp_path / "t", 300).to_str() == made.to_str()
    assert (tmp_path / "t" / "tokenizer.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="not of this text and size"):
        learn_tokenizer(files, tmp_path / "t", 290)
