"""Small files are there whole or not at all, and whoever cannot have one is told so in one line."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bloomery.disk.small import as_json, make_folder_of, save_json, write_beside
from bloomery.errors import UsageError

VALUE = {"name": "Thüringen", "numbers": [1, 2.5, None, True], "nested": {"of": {}}}


def test_json_comes_back_and_can_be_read_by_people(tmp_path: Path) -> None:
    save_json(tmp_path / "new" / "folder" / "a.json", VALUE)
    text = (tmp_path / "new" / "folder" / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == VALUE
    assert text.endswith("}\n")
    assert '\n  "name": "Thüringen",\n' in text


def test_nothing_lies_beside_what_was_written(tmp_path: Path) -> None:
    for value in (VALUE, {}):
        save_json(tmp_path / "a.json", value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == as_json({}) == b"{}\n"


def test_a_file_is_for_whom_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_beside(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("fails", ["write_bytes", "replace"])
def test_what_was_there_stays_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    write_beside(tmp_path / "a", b"before")
    written = Path.write_bytes

    def fail(path: Path, content: object) -> None:
        if fails == "write_bytes":
            written(path, b"aft")  # some of it
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, fails, fail)
    with pytest.raises(UsageError, match=r"/a cannot be written: No space left on device: choose another place$"):
        save_json(tmp_path / "a", VALUE)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


def test_what_is_no_json_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_json(tmp_path / "folder" / "a.json", {"a": object()})
    assert not list(tmp_path.iterdir())


def test_a_reader_sees_one_of_what_many_write(tmp_path: Path) -> None:
    file, contents = tmp_path / "a", [bytes([n]) * 100_000 for n in range(4)]
    write_beside(file, contents[0])
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write_beside, file, content) for content in contents * 20]
        seen = [file.read_bytes() for _ in range(200)]
        for one in writing:
            one.result()
    assert {*seen, file.read_bytes()} <= {*contents}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("act", [make_folder_of, lambda file: save_json(file, VALUE)], ids=["before", "then"])
@pytest.mark.parametrize("place", ["file/a.json", "file/deep/a.json", "folder"])
def test_a_place_that_cannot_be_is_one_clear_line(tmp_path: Path, act, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(UsageError, match=rf"{place} cannot be written: .*") as told:
        act(tmp_path / place)
    assert "\n" not in str(told.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
