"""Curves are what metrics.jsonl says, once for each step, however often a run was killed and went on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloomery.errors import UsageError
from bloomery.train.recipe.log_options import LogOptions
from bloomery.train.report.curves import read_curves
from bloomery.train.report.log import RunLog


def write(folder: Path, *lines: dict[str, Any] | str) -> Path:
    folder.mkdir(exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return folder


def points(folder: Path, key: str, axis: str = "step") -> list[tuple[float, float]]:
    x, y = read_curves(folder).over(axis, key)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def test_what_a_log_wrote_is_read(tmp_path: Path) -> None:
    with RunLog(tmp_path, LogOptions(), steps=2) as log:
        log.write(1, {"loss": 2.5})
        log.write(2, {"loss": 2.0, "lr": 1e-3})
        log.write(2, {"eval/valid/loss": 3.0})
    assert points(tmp_path, "loss") == [(1, 2.5), (2, 2.0)]
    assert points(tmp_path, "lr") == [(2, 1e-3)]
    assert points(tmp_path / "metrics.jsonl", "eval/valid/loss") == [(2, 3.0)]
    assert points(tmp_path, "nothing") == []


def test_steps_that_were_taken_again_count_once(tmp_path: Path) -> None:
    with RunLog(tmp_path, LogOptions(), steps=4) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": float(step), "eval/valid/loss": 9.0})
    with RunLog(tmp_path, LogOptions(), steps=4, done=1) as log:
        log.write(2, {"loss": 20.0})
        log.write(4, {"loss": 40.0})
    assert points(tmp_path, "loss") == [(1, 1), (2, 20), (4, 40)]
    assert points(tmp_path, "eval/valid/loss") == [(1, 9)]


def test_a_number_that_was_not_finite_is_a_gap(tmp_path: Path) -> None:
    run = write(tmp_path / "run", {"step": 1, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 3.0})
    x, y = read_curves(run).over("step", "loss")
    assert x.tolist() == [1, 2, 3]
    assert np.array_equal(y, [1, np.nan, 3], equal_nan=True)


def test_another_axis_is_what_the_lines_say_or_between_them(tmp_path: Path) -> None:
    run = write(
        tmp_path / "run",
        {"step": 10, "tokens": 100, "loss": 1.0},
        {"step": 15, "eval/valid/loss": 4.0},
        {"step": 20, "tokens": 500, "loss": 2.0},
        {"step": 20, "eval/valid/loss": 3.0},
    )
    assert points(run, "loss", "tokens") == [(100, 1), (500, 2)]
    assert points(run, "eval/valid/loss", "tokens") == [(300, 4), (500, 3)]
    assert points(run, "loss", "samples") == []


def test_a_line_that_is_cut_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write(tmp_path / "run", {"step": 1, "loss": 1.0}, '{"step": 2, "lo', "7", '{"step": true, "loss": 8}')
    with caplog.at_level("WARNING", logger="bloomery"):
        assert points(run, "loss") == [(1, 1)]


@pytest.mark.parametrize("lines", [(), ({"event": "start", "step": 0},), ({"loss": 1.0},), ({"step": 1, "a": "b"},)])
def test_a_run_without_figures_is_refused(lines: tuple[dict[str, Any], ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no figures yet"):
        read_curves(write(tmp_path / "run", *lines))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"metrics\.jsonl cannot be read .*give the folder of a training run"):
        read_curves(tmp_path)
