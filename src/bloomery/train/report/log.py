"""A run's log: what one step measured goes to every sink that was asked for. Knows no model and no clock.

metrics.jsonl is only added to. Every start of the run writes a line with `"event": "start"` and the steps that were
done by then: lines before it with a later step are of steps that were taken again (`curves` leaves them out).
"""

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bloomery.log import logger
from bloomery.train.recipe.log_options import LogOptions
from bloomery.train.report.figures import Value
from bloomery.train.report.sinks import FILE, JsonLines, Sink, TensorBoard, Wandb
from bloomery.train.report.view import Lines, LiveView, is_watched


class RunLog:
    """Opens what was asked for when the block is entered, and closes all of it.

    Args:
        folder: the run's own.
        steps: of the whole run; None where that is not known.
        done: steps that are done already, where a run is gone on with.
        recipe: the run's options, for those who keep them beside the figures.

    Raises, on entering:
        MissingExtra: what a sink needs is not installed.
        UsageError: metrics.jsonl cannot be written, or Weights & Biases does not let us in.
    """

    def __init__(
        self,
        folder: Path,
        options: LogOptions,
        *,
        steps: int | None,
        done: int = 0,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.options, self.steps, self.done = folder, options, steps, done
        self.recipe: Mapping[str, Any] = recipe or {}
        self._open = ExitStack()
        self._sinks: list[Sink] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._file = JsonLines(self.folder / FILE)
            stack.callback(self._file.close)
            self._sinks = [self._file]
            if self.options.tensorboard:
                self._add(TensorBoard(self.folder / "tensorboard", self.done), stack)
            if self.options.wandb is not None:
                self._add(Wandb(self.folder, self.options.wandb, self.recipe), stack)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self.event("start", {"step": self.done, "steps": self.steps, "time": now})
            watched = is_watched() and not self.options.lines
            self._view = LiveView(self.steps, self.done) if watched else Lines(self.steps)
            self._add(self._view, stack)
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """The figures of a step, to every sink.

        Raises:
            UsageError: metrics.jsonl cannot be written.
        """
        for sink in self._sinks:
            sink.write(step, values)

    def event(self, name: str, values: Mapping[str, Value], text: str = "") -> None:
        """What happened once: a line of metrics.jsonl of its own kind, and `text` for people."""
        self._file.line({"event": name} | dict(values))
        if text:
            logger.info("%s", text)

    def tick(self, step: int) -> None:
        """So many steps are done: moves the live view's bar. Cheap; for every step."""
        self._view.tick(step)

    def _add(self, sink: Sink, stack: ExitStack) -> None:
        self._sinks.append(sink)
        stack.callback(sink.close)
