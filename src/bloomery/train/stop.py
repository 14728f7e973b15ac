"""Wishes to stop, granted between two steps: signals, a file, a deadline, a count. Knows nothing of what runs."""

import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from bloomery.errors import UsageError
from bloomery.train.pace import Reached
from bloomery.train.recipe.pace_options import Stop

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")


OWN = "STOP"
"""In a run's folder, this file ends the run."""


def refuse_to_begin(options: Stop) -> None:
    """Refuse a run that would end at once, before anything is built.

    Raises:
        UsageError: the file that ends it is there.
    """
    if options.file is not None and options.file.expanduser().exists():
        raise UsageError(f"stop.file '{options.file}' is there, and would end the run at once: remove it first")


class StopWatch:
    """While it is entered, a signal only asks for the end, and a second Ctrl-C interrupts at once.

    Python may raise KeyboardInterrupt between any two lines, half-way through an update of the weights too.
    Signals reach the main thread alone: elsewhere they change nothing.

    Args:
        folder: the run's. A file STOP in it is removed when it is seen, so that the next start is not stopped by it; a
            file that the options name may be meant for other runs too, and stays.
        begun: how far the run was at this start.
    """

    def __init__(self, options: Stop, folder: Path, begun: Reached) -> None:
        self.options, self.begun = options, begun
        self.own = folder / OWN
        self._asked: str | None = None
        self._before: dict[int, Any] = {}
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def reason(self, reached: Reached) -> str | None:
        """Why the run is to end now, or None."""
        options, begun = self.options, self.begun
        if self._asked is not None:
            return self._asked
        if self.own.exists():
            self.own.unlink(missing_ok=True)
            return f"{self.own} was there"
        if options.file is not None and options.file.expanduser().exists():
            return f"{options.file} is there"
        if options.minutes is not None and time.monotonic() - self._since >= 60 * options.minutes:
            return f"stop.minutes {options.minutes:g} are over"
        if options.steps is not None and reached.steps - begun.steps >= options.steps:
            return f"stop.steps {options.steps} are done"
        if options.tokens is not None and reached.tokens - begun.tokens >= options.tokens:
            return f"stop.tokens {options.tokens} are done"
        return None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = signal.Signals(number).name
