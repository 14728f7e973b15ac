"""What a run says while it runs: one JSON object a line in a file, and a line for people. Knows no model."""

import json
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bloomery.errors import UsageError
from bloomery.log import logger


class Metrics:
    """Writes metrics.jsonl line by line, each out of our hands at once, and shows progress on stderr.

    A number that is not finite is written as null, since JSON has no word for it.
    """

    def __init__(self, file: Path, steps: int) -> None:
        self._name = file
        self._file: IO[str] = file.open("w", encoding="utf-8", buffering=1)
        self._steps = steps
        shown = sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)
        self._bar = _bar() if shown else None
        self._task = self._bar.add_task("train", total=steps) if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        self._file.close()

    def write(self, values: Mapping[str, float | int | str]) -> None:
        """One line of the file.

        Raises:
            UsageError: it cannot be written.
        """
        safe = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        try:
            self._file.write(json.dumps(safe, allow_nan=False) + "\n")
        except OSError as error:
            raise UsageError(f"{self._name} cannot be written: {error.strerror}: make room") from None

    def show(self, done: int, text: str) -> None:
        """Progress after `done` steps: moves the bar where stderr is a terminal, else logs a line."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, description=text)
        else:
            logger.info("step %d/%d  %s", done, self._steps, text)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
