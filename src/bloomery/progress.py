"""How far a long transfer is: a bar on a terminal, two lines elsewhere. Knows only bytes."""

import logging
import sys
from threading import Lock
from types import TracebackType
from typing import Any

from bloomery.log import logger


def as_size(count: float) -> str:
    """Bytes in the unit that fits: 512 B, 1.5 kB, 352.8 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class Progress:
    """While the block runs: `moved` counts bytes, `note` says something without breaking the bar."""

    def __init__(self, title: str, total: int, done: int) -> None:
        self.title, self.total, self.done = title, total, done
        self.received = 0
        self._lock = Lock()
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr is not None and sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task(self.title, total=self.total, completed=self.done)
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def moved(self, count: int) -> None:
        """Count bytes that came; fewer than none where a file starts again. From any thread."""
        with self._lock:
            self.received += max(count, 0)
        if self.bar is not None:
            self.bar.advance(self.task, count)

    def retitle(self, title: str) -> None:
        """Say something else before the bar."""
        if self.bar is not None:
            self.bar.update(self.task, description=title)

    def note(self, text: str) -> None:
        if self.bar is not None:
            self.bar.console.print(f"bloomery: {text}", markup=False, highlight=False, soft_wrap=True)
        else:
            logger.info("%s", text)
