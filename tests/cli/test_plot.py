"""`bloomery train plot` is a verb of its own, which draws runs without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bloomery.cli import main


def run_folder(folder: Path) -> Path:
    folder.mkdir()
    lines = [{"step": step, "tokens": 100 * step, "loss": 5.0 / step} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_one_run_is_drawn_into_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "run")
    assert main(["train", "plot", str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(run / "plot.png"), str(run / "plot.html")]
    assert (run / "plot.html").read_text().startswith("<!doctype html>")


def test_several_runs_are_drawn_where_one_stands_or_where_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(run_folder(tmp_path / name)) for name in ("a", "b")]
    monkeypatch.chdir(tmp_path)
    assert main(["train", "plot", *runs, "--x", "tokens"]) == 0
    assert capsys.readouterr().out.split() == ["plot.png", "plot.html"]
    assert main(["train", "plot", *runs, "--to", "pictures/both"]) == 0
    assert (tmp_path / "pictures" / "both.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no run: give the folder of a training run"),
        (["nowhere"], "nowhere cannot be read (No such file or directory)"),
        (["run", "--x", "hours"], "hours"),
        (["run", "--x", "samples"], "nothing to draw over samples"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_folder(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "plot", *argv]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_drawing_needs_no_torch(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    program = "import sys; from bloomery.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", program, "train", "plot", run]
    assert subprocess.run(command, capture_output=True).returncode == 0
