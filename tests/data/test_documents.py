"""Documents come out of every kind of file whole, once and in order, however the files are cut into shards."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data import documents
from bloomery.data.documents import find_files, plan_shards, read_documents, read_shard
from bloomery.errors import MissingExtra, UsageError

Write = Callable[[Path, list[str]], Path]


def as_text(folder: Path, texts: list[str]) -> Path:
    for number, text in enumerate(texts):
        (folder / "text").mkdir(exist_ok=True)
        (folder / "text" / f"{number:02}.txt").write_bytes(text.encode())
    return folder / "text"


def as_lines(folder: Path, texts: list[str]) -> Path:
    lines = [json.dumps({"n": n, "text": text}, ensure_ascii=n % 2 == 0) for n, text in enumerate(texts)]
    (folder / "rows.jsonl").write_text("\n".join(lines[:9]) + "\n\n  \n" + "\n".join(lines[9:]), encoding="utf-8")
    return folder / "rows.jsonl"


def as_parquet(folder: Path, texts: list[str]) -> Path:
    table = pa.table({"n": list(range(len(texts))), "text": texts})
    pq.write_table(table, folder / "rows.parquet", row_group_size=7)
    return folder / "rows.parquet"


def as_arrow(folder: Path, texts: list[str]) -> Path:
    table = pa.table({"text": pa.array(texts, pa.large_string())})
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=6)
    return folder / "rows.arrow"


@pytest.mark.parametrize("shard_bytes", [1, 50, 500, 8 * 2**20])
@pytest.mark.parametrize("write", [as_text, as_lines, as_parquet, as_arrow])
def test_documents_come_whole_and_in_order_from_shards_of_any_size(
    write: Write, shard_bytes: int, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "SHARD_BYTES", shard_bytes)
    shards = plan_shards(find_files("x", [str(write(tmp_path, texts))]))
    assert [text for shard in shards for text in read_shard(shard)] == texts
    assert len(shards) == 1 or shard_bytes < 1000
    assert len(shards) > 3 or shard_bytes > 1000


def test_several_keys_are_joined_by_a_newline_in_their_order(tmp_path: Path) -> None:
    rows = [{"text": "body", "title": "head", "n": 1}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    files = find_files("x", [str(tmp_path / "a.jsonl"), str(tmp_path / "b.parquet")])
    assert list(read_documents(files, ["title", "text"])) == ["head\nbody"] * 2


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    texts = ["a\u2028b", "c\u0085d\x0c", "e\rf"]
    rows = "\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    (tmp_path / "a.jsonl").write_bytes(rows.encode())
    assert list(read_documents([tmp_path / "a.jsonl"])) == texts


@pytest.mark.parametrize("shard_bytes", [1, 4, 8 * 2**20])
def test_a_byte_order_mark_at_the_beginning_of_a_file_is_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int
) -> None:
    monkeypatch.setattr(documents, "SHARD_BYTES", shard_bytes)
    texts = ["\ufeffnaïve", "\ufeff\ufeffa", "b\ufeff", "\ufeff", ""]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    files = [tmp_path / f"{number}.txt" for number in range(len(texts))]
    assert list(read_documents(files)) == [file.read_bytes().decode("utf-8-sig") for file in files]
    rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    for begin, found in ((rows, texts), ("\n" + rows, texts), ("", [])):
        (tmp_path / "a.jsonl").write_text("\ufeff" + begin, encoding="utf-8")
        assert list(read_documents([tmp_path / "a.jsonl"])) == found


def test_a_fault_behind_a_byte_order_mark_is_told_with_its_place_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfok \xff")
    with pytest.raises(UsageError, match=r"a\.txt is not UTF-8 at byte 6:"):
        list(read_documents([tmp_path / "a.txt"]))
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\n{"text": 1}')
    with pytest.raises(UsageError, match=r"a\.jsonl at byte 17: field 'text' is int"):
        list(read_documents([tmp_path / "a.jsonl"]))


# --- which files -----------------------------------------------------------------------------------------------------


def test_a_folder_stands_for_its_files_at_any_depth_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.jsonl", ".hidden", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [str(file.relative_to(tmp_path)) for file in find_files("x", [str(tmp_path)])] == ["a/c.jsonl", "b.txt"]


def test_a_file_named_twice_is_taken_once_and_names_keep_their_order(tmp_path: Path) -> None:
    for name in ("a", "b", "c[1]"):
        (tmp_path / name).write_text(name)
    (tmp_path / "d").symlink_to("a")
    found = find_files("data.train", [str(tmp_path / name) for name in ("c[1]", "b", "*")])
    assert [file.name for file in found] == ["c[1]", "b", "a"]


def test_a_tilde_stands_for_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("text")
    assert find_files("data.train", ["~/*.txt"]) == (tmp_path / "a.txt",)


def test_a_pattern_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.train: no file matches"):
        find_files("data.train", [str(tmp_path / "*.txt")])


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"ok \xff", r"a\.txt is not UTF-8 at byte 3"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 1}', r"a\.jsonl at byte 14: field 'text' is int, not text"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y", "n": 1}', r"field 'text' is not there, but body, n"),
        ("a.jsonl", b'{"text": null}', r"field 'text' is NoneType"),
        ("a.jsonl", b'{"text": "x"', r"a\.jsonl at byte 0 is no line of JSON"),
        ("a.json", b'[{"text": "x"}]', r"a\.json at byte 0: no object with fields, but list"),
        ("a.jsonl", b'{"text": "\xff"}', r"a\.jsonl at byte 0 is no line of JSON"),
        ("a.jsonl", rb'{"text": "\ud800"}', r"half a surrogate pair"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl at byte 0 is no line of JSON"),
        ("a.parquet", b"PAR1 no", r"a\.parquet is no Parquet file"),
        ("a.arrow", b"\x00" * 64, r"a\.arrow is no Arrow stream"),
        ("a.txt.gz", b"\x1f\x8b", r"a\.txt\.gz is packed: unpack it"),
        ("a.bin", b"\x00", r"a\.bin is no text, JSON lines, Parquet or Arrow"),
    ],
)
def test_what_is_no_text_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=said) as caught:
        list(read_documents([tmp_path / name]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [as_parquet, as_arrow])
def test_a_column_that_is_not_there_is_refused_with_those_that_are(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no column 'body', but (n, )?text"):
        list(read_documents([write(tmp_path, ["a"])], ["body"]))


def test_a_column_of_something_else_is_refused_with_its_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"a\.parquet row 1: field 'text' is NoneType"):
        list(read_documents([tmp_path / "a.parquet"]))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(documents, "import_module", missing)
    with pytest.raises(MissingExtra, match=r"'pyarrow': pip install 'bloomery\[data\]'"):
        plan_shards([tmp_path / "a.parquet"])
