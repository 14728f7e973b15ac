"""A folder that none can replace is refused before anything is written."""

from pathlib import Path

import pytest

from bloomery.cli import main
from bloomery.disk.place import refuse_fixed
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
