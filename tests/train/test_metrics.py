"""Progress is a bar on a terminal, a line elsewhere, and nothing where quiet was asked for."""

import errno
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bloomery import log
from bloomery.errors import UsageError
from bloomery.train.metrics import Metrics


@pytest.mark.parametrize(("verbosity", "shown"), [(-1, False), (0, True)])
def test_the_bar_keeps_quiet_when_asked_to(
    verbosity: int, shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    log.configure(verbosity)
    try:
        with Metrics(tmp_path / "metrics.jsonl", 3) as metrics:
            metrics.show(1, "loss 1.0")
    finally:
        log.configure()
    assert ("loss 1.0" in capsys.readouterr().err) == shown


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Metrics(tmp_path / "metrics.jsonl", 3) as metrics:
        monkeypatch.setattr(metrics, "_file", SimpleNamespace(write=full, close=metrics._file.close))
        with pytest.raises(UsageError, match=r"metrics\.jsonl cannot be written: No space left on device: make room"):
            metrics.write({"step": 1})
