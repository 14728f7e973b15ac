"""Where a run's figures are written to: a file of JSON lines, TensorBoard, Weights & Biases. Knows no figure."""

import json
import math
import os
import secrets
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Protocol

from bloomery.errors import MissingExtra, UsageError
from bloomery.log import logger
from bloomery.train.report.figures import Value

FILE = "metrics.jsonl"


class Sink(Protocol):
    """Takes the figures of a step, and is closed once."""

    def write(self, step: int, values: Mapping[str, Value]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """metrics.jsonl: one JSON object a line, each out of our hands at once. An older file is gone on with.

    Raises:
        UsageError: it cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self._name = file
        try:
            mend(file)
            self._file: IO[str] = file.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise self._refusal(error) from None

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        self.line({"step": step} | dict(values))

    def line(self, values: Mapping[str, Value]) -> None:
        """One line. A number that is not finite is written as null, since JSON has no word for it."""
        safe = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        try:
            self._file.write(json.dumps(safe, allow_nan=False, ensure_ascii=False) + "\n")
        except OSError as error:
            raise self._refusal(error) from None

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:  # what a full disk did not take is tried once more
            raise self._refusal(error) from None

    def _refusal(self, error: OSError) -> UsageError:
        return UsageError(f"{self._name} cannot be written: {error.strerror}: make room, or choose another run.out")


def mend(file: Path) -> None:
    """Cut a last line that a killed process did not finish, or end it where only the end of the line is missing."""
    if not file.exists():
        return
    with file.open("r+b") as lines:
        size = lines.seek(0, os.SEEK_END)  # none where it is no file, but a device that can be read for ever
        lines.seek(0)
        data = lines.read(size)
        begin = data.rfind(b"\n") + 1
        if begin == len(data):
            return
        try:
            json.loads(data[begin:])
        except ValueError:
            logger.warning("%s: its last line was cut short and is removed: %r", file, data[begin:][:80])
            lines.truncate(begin)
        else:
            lines.write(b"\n")


class TensorBoard:
    """Event files for TensorBoard; figures of steps after `done`, which an earlier start wrote, are hidden by it.

    Raises:
        MissingExtra: tensorboard is not installed.
    """

    def __init__(self, folder: Path, done: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtra("tensorboard", "train") from None
        self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None)

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        for key, value in values.items():
            if isinstance(value, float | int):
                self._writer.add_scalar(_tag(key), value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run at Weights & Biases, gone on with when this one is: the folder keeps its id in wandb-id.

    Raises:
        MissingExtra: wandb is not installed.
        UsageError: it does not let us in.
    """

    def __init__(self, folder: Path, project: str, recipe: Mapping[str, Any]) -> None:
        try:
            wandb = import_module("wandb")
        except ImportError:
            raise MissingExtra("wandb", "wandb") from None
        kept = folder / "wandb-id"
        try:
            if not kept.exists():
                kept.write_text(secrets.token_hex(6), encoding="utf-8")
            name, identity = folder.resolve().name, kept.read_text(encoding="utf-8").strip()
            self._run: Any = wandb.init(
                project=project, name=name, id=identity, resume="allow", dir=str(folder), config=dict(recipe)
            )
        except OSError as error:
            raise UsageError(f"{kept} cannot be kept: {error.strerror}: make room") from None
        except Exception as error:  # of its own kinds, which only it can name
            reason = " ".join(str(error).split())
            raise UsageError(f"log.wandb: no run could be begun ({reason}): run wandb login, or leave it out") from None

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        self._run.log({_tag(key): value for key, value in values.items() if value is not None}, step=step)

    def close(self) -> None:
        self._run.finish()


def _tag(key: str) -> str:
    """Held-out sets have groups of their own; all else is one group."""
    return key if "/" in key else f"train/{key}"
