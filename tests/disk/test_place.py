"""A folder that none can replace is refused before anything is written."""

import os
from pathlib import Path

import pytest

from bloomery.cli import main
from bloomery.disk.lock import held
from bloomery.disk.place import refuse_fixed, replacing_folder
from bloomery.errors import UsageError


def test_mount_point_is_refused() -> None:
    with pytest.raises(UsageError, match="/ is a mount point"):
        refuse_fixed(Path("/"))


@pytest.mark.parametrize("verb", ["export", "convert"])
def test_current_folder_and_those_above_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for target in (".", ".."):
        assert main([verb, "dickens", target]) == 2
        assert "is where you stand" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]
    assert main([verb, "dickens", "below"]) == 0


def test_what_a_killed_process_left_goes_and_what_is_held_or_new_stays(tmp_path: Path) -> None:
    left, in_use, new, other = (
        tmp_path / name for name in (".a.x1.unfinished", ".a.x2.unfinished", ".a.x3.unfinished", ".b.x1.unfinished")
    )
    for folder in (left, in_use, new, other):
        folder.mkdir()
        (folder / "weights").write_text("half")
        if folder != new:
            os.utime(folder, (0, 0))
    with held(in_use), replacing_folder(tmp_path / "a") as fresh:
        (fresh / "file").write_text("whole")
    assert not left.exists()
    assert all((folder / "weights").exists() for folder in (in_use, new, other))
    assert (tmp_path / "a" / "file").read_text() == "whole"
