"""A run as people see it: a line an interval, or on a terminal a live view. Knows no file."""

import logging
import math
import sys
from collections import deque
from collections.abc import Mapping
from time import monotonic

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bloomery.log import logger
from bloomery.train.report.figures import Value, as_words

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60
"""Losses that the live view draws."""
BETWEEN = 0.25
"""Seconds between two drawings of the live view; nothing runs in between, so that it takes no time from the run."""


class Lines:
    """One line of the log for what is written."""

    def __init__(self, steps: int | None) -> None:
        self._steps = steps

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        of = "" if self._steps is None else f"/{self._steps}"
        logger.info("step %d%s  %s", step, of, "  ".join(f"{name} {value}" for name, value in as_words(values)))

    def tick(self, step: int) -> None:
        """Nothing: lines are for whole intervals."""

    def close(self) -> None:
        """Nothing is held."""


class LiveView:
    """Bar, latest figures and the curve of the loss, drawn over themselves at the end of the terminal. What the logger
    says meanwhile stands above them."""

    def __init__(self, steps: int | None, done: int) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TaskProgressColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self._bar = Progress(TextColumn("{task.description}"), *columns, console=console)
        self._task = self._bar.add_task("step", total=steps, completed=done)
        self._latest: dict[str, str] = {}
        self._losses: deque[float] = deque(maxlen=WIDTH)
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False)
        self._drawn = -math.inf
        self._live.start()
        # A handler holds the stream that it was made with, and would write through the picture.
        self._streams = [
            (handler, handler.setStream(sys.stderr))
            for handler in logger.handlers
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
        ]
        self._draw()

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        self._latest |= dict(as_words(values))
        loss = values.get("loss")
        if isinstance(loss, float | int) and math.isfinite(loss):
            self._losses.append(loss)
        self._bar.update(self._task, completed=step)
        self._draw()

    def tick(self, step: int) -> None:
        """Move the bar, now and then."""
        self._bar.update(self._task, completed=step)
        if monotonic() - self._drawn >= BETWEEN:
            self._draw()

    def close(self) -> None:
        self._draw()
        self._live.stop()
        for handler, stream in self._streams:
            if stream is not None:
                handler.setStream(stream)

    def _draw(self) -> None:
        self._drawn = monotonic()
        table = Table.grid(padding=(0, 2))
        for name, value in self._latest.items():
            table.add_row(Text(name, style="dim"), Text(value))
        self._live.update(Group(self._bar, table, Text(sparkline(list(self._losses)))), refresh=True)


def sparkline(values: list[float]) -> str:
    """The curve of some numbers, a character each, from the lowest to the highest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)


def is_watched() -> bool:
    """Whether somebody sees a live view: stderr is a terminal, and quiet was not asked for."""
    return sys.stderr is not None and sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)
