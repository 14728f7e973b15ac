"""What is written of a run survives kills, goes on where it stopped, and reaches every place that was asked for."""

import errno
import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.file_proxy import FileProxy

from bloomery import log as logging_setup
from bloomery.errors import MissingExtra, UsageError
from bloomery.log import logger
from bloomery.train.recipe.log_options import LogOptions
from bloomery.train.report.log import RunLog
from bloomery.train.report.sinks import JsonLines


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_line_is_one_json_object_with_its_step(tmp_path: Path) -> None:
    with RunLog(tmp_path, LogOptions(), steps=2) as log:
        log.write(1, {"loss": 2.5, "tokens": 2**53, "eval/été/loss": 1.0})
        log.event("memory", {"when": "before build", "rss_bytes": 5})
    start, first, memory = lines(tmp_path)
    assert (start["event"], start["step"], start["steps"]) == ("start", 0, 2)
    assert first == {"step": 1, "loss": 2.5, "tokens": 2**53, "eval/été/loss": 1.0}
    assert memory == {"event": "memory", "when": "before build", "rss_bytes": 5}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(value: float, tmp_path: Path) -> None:
    with RunLog(tmp_path, LogOptions(), steps=1) as log:
        log.write(1, {"loss": value})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text.splitlines()[1], parse_constant=pytest.fail)["loss"] is None


KILLED = """
import os, signal, sys
from pathlib import Path
from bloomery.train.report.log import RunLog
from bloomery.train.recipe.log_options import LogOptions
with RunLog(Path(sys.argv[1]), LogOptions(), steps=9) as log:
    log.write(1, {"loss": 1.5})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_has_every_line_that_was_written(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path]).returncode == -signal.SIGKILL
    assert lines(tmp_path)[-1] == {"step": 1, "loss": 1.5}


def test_a_run_that_goes_on_adds_to_its_file(tmp_path: Path) -> None:
    for done in (0, 5):
        with RunLog(tmp_path, LogOptions(), steps=10, done=done) as log:
            log.write(done + 1, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 5, 6]


@pytest.mark.parametrize("cut", range(1, 18))
def test_a_last_line_that_was_cut_is_mended(cut: int, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    whole = b'{"step": 1}\n{"step": 2, "x": 3}\n'
    file.write_bytes(whole[:-cut])
    sink = JsonLines(file)
    sink.write(7, {})
    sink.close()
    kept = [1, 2, 7] if cut == 1 else [1, 7]  # of which only the end of the line was missing
    assert [line["step"] for line in lines(tmp_path)] == kept


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    sink = JsonLines(tmp_path / "metrics.jsonl")
    monkeypatch.setattr(sink, "_file", SimpleNamespace(write=full, close=sink._file.close))
    with pytest.raises(UsageError, match=r"metrics\.jsonl cannot be written: No space left on device: make room"):
        sink.write(1, {})
    sink.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_fills_up_ends_the_run_with_one_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UsageError, match="make room"), RunLog(tmp_path, LogOptions(), steps=1):
        pass


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"), RunLog(tmp_path / "none", LogOptions(), steps=1):
        pass


# --- for people ------------------------------------------------------------------------------------------------------


def test_elsewhere_than_on_a_terminal_an_interval_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logging_setup.configure()
    values = {"samples": 80, "tokens": 40960, "loss": 2.51234, "grad_norm": 0.5, "lr": 1.2e-3, "batch_size": 8}
    values |= {"seq_len": 512, "mfu": 0.351, "rss_bytes": 10**9, "rss_peak_bytes": 2 * 10**9, "unheard_of": 1}
    with RunLog(tmp_path, LogOptions(), steps=100) as log:
        log.tick(9)
        log.write(10, values)
        log.write(10, {"eval/a b/loss": 2.25, "eval/a b/perplexity": 9.49, "eval/a b/bits_per_byte": 1.5})
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "bloomery: step 10/100  samples 80  tokens 40,960  loss 2.5123  grad norm 0.500  lr 1.20e-03  batch 8 × 512"
        "  MFU 35.1 %  RSS 1.0 GB (peak 2.0 GB)"
    )
    assert second == ("bloomery: step 10/100  held out a b: loss 2.2500, perplexity 9.49, 1.5000 bits per byte")


@pytest.mark.parametrize(
    ("verbosity", "lines_asked", "drawn"), [(-1, False, False), (0, False, True), (0, True, False)]
)
def test_a_terminal_has_a_live_view_unless_quiet_or_lines_were_asked_for(
    verbosity: int,
    lines_asked: bool,
    drawn: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    logging_setup.configure(verbosity)
    try:
        before = [handler.stream for handler in logger.handlers]
        with RunLog(tmp_path, LogOptions(lines=lines_asked), steps=3) as log:
            log.write(1, {"loss": 3.0})
            logger.info("said between")
            assert all(isinstance(handler.stream, FileProxy) == drawn for handler in logger.handlers)
            log.write(2, {"loss": 1.0})
            log.tick(3)
        assert [handler.stream for handler in logger.handlers] == before
    finally:
        logging_setup.configure()
    shown = capsys.readouterr().err
    assert ("█▁" in shown) == drawn  # the curve of both losses
    assert ("said between" in shown) == (verbosity == 0)
    assert ("step 1/3" in shown) == lines_asked


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def tensorboard_points(folder: Path, tag: str) -> list[tuple[int, float]]:
    """As TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    with RunLog(tmp_path, LogOptions(tensorboard=True), steps=2) as log:
        log.write(1, {"loss": 2.5, "name": "no number", "eval/valid/loss": 3.0, "gone": None})
        log.write(2, {"loss": 2.0})
    assert tensorboard_points(tmp_path, "train/loss") == [(1, 2.5), (2, 2.0)]
    assert tensorboard_points(tmp_path, "eval/valid/loss") == [(1, 3.0)]


def test_tensorboard_forgets_steps_that_are_taken_again(tmp_path: Path) -> None:
    with RunLog(tmp_path, LogOptions(tensorboard=True), steps=5) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": float(step)})
    with RunLog(tmp_path, LogOptions(tensorboard=True), steps=5, done=1) as log:
        log.write(2, {"loss": 20.0})
    assert tensorboard_points(tmp_path, "train/loss") == [(1, 1.0), (2, 20.0)]


@pytest.mark.parametrize(
    ("module", "options", "extra"),
    [
        ("torch.utils.tensorboard", LogOptions(tensorboard=True), r"bloomery\[train\]"),
        ("wandb", LogOptions(wandb="x"), r"bloomery\[wandb\]"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(
    module: str, options: LogOptions, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=extra), RunLog(tmp_path, options, steps=1):
        pass


# --- Weights & Biases ------------------------------------------------------------------------------------------------


class FakeWandb(ModuleType):
    """The three calls of wandb that are used, with its own parameters (docs.wandb.ai/ref/python/init)."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[str, Any]] = []

    def init(self, *, project: str, name: str, id: str, resume: str, dir: str, config: dict[str, Any]) -> "FakeWandb":
        self.calls.append(("init", (project, name, id, resume, dir, config)))
        return self

    def log(self, data: dict[str, Any], step: int) -> None:
        self.calls.append(("log", (step, data)))

    def finish(self) -> None:
        self.calls.append(("finish", None))


def test_wandb_is_told_every_figure_under_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for done in (0, 1):
        with RunLog(tmp_path, LogOptions(wandb="novels"), steps=2, done=done, recipe={"optim": {"lr": 1}}) as log:
            log.write(done + 1, {"loss": 2.5, "eval/valid/loss": 3.0, "gone": None})
    kept = (tmp_path / "wandb-id").read_text()
    begun = ("init", ("novels", tmp_path.name, kept, "allow", str(tmp_path), {"optim": {"lr": 1}}))
    told = {"train/loss": 2.5, "eval/valid/loss": 3.0}
    assert wandb.calls == [
        *(begun, ("log", (1, told)), ("finish", None)),
        *(begun, ("log", (2, told)), ("finish", None)),
    ]


def test_wandb_that_lets_nobody_in_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = FakeWandb()

    def refuse(**_: Any) -> None:
        raise RuntimeError("no key:\n none at all")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(UsageError, match=r"no run could be begun \(no key: none at all\)"):  # noqa: SIM117
        with RunLog(tmp_path, LogOptions(wandb="novels"), steps=1):
            pass


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wandb": " "}, r"log\.wandb is empty"),
        ({"peak_tflops": 0.0}, r"log\.peak_tflops is 0\.0: give a number above 0"),
        ({"peak_tflops": math.nan}, r"log\.peak_tflops is nan"),
        ({"peak_tflops": math.inf}, r"log\.peak_tflops is inf"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LogOptions(**options)
