"""What a run's metrics.jsonl says, as curves. Knows no picture and no model."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bloomery.errors import UsageError
from bloomery.log import logger
from bloomery.train.report.sinks import FILE

Numbers = np.ndarray[tuple[int], np.dtype[np.float64]]
AXES = ("step", "samples", "tokens", "seconds")
"""What a curve can be drawn over; figures under these names grow from line to line."""


@dataclass(frozen=True)
class Curves:
    """A run's figures by name: `values[key]` are the steps and the numbers there; NaN where one was not finite."""

    name: str
    values: dict[str, tuple[Numbers, Numbers]]

    def over(self, axis: str, key: str) -> tuple[Numbers, Numbers]:
        """(x, y) of a figure over step, samples, tokens or seconds; none where the run does not have both.

        A line that does not say where it stands on the axis stands between those that do.
        """
        none: tuple[Numbers, Numbers] = np.empty(0), np.empty(0)
        steps, numbers = self.values.get(key, none)
        if axis == "step" or not len(steps):
            return steps, numbers
        at, known = self.values.get(axis, none)
        return (np.interp(steps, at, known), numbers) if len(at) else none


def read_curves(path: Path) -> Curves:
    """The curves of a run, by its folder or its metrics.jsonl.

    Of steps that were taken again after a kill, the last ones count. A line that is no JSON object is left out.

    Raises:
        UsageError: there is no such file, or no figure in it.
    """
    file = path / FILE if path.is_dir() else path
    lines = _lines(file)
    known: dict[str, dict[float, float]] = {}
    for line in lines:
        step = line.get("step")
        if step is None or not _is_number(step):
            continue
        if "event" in line:
            if line["event"] == "start":
                for points in known.values():
                    for later in [at for at in points if at > step]:
                        del points[later]
            continue
        for key, value in line.items():
            if key != "step" and (value is None or _is_number(value)):
                known.setdefault(key, {})[step] = math.nan if value is None else value
    values = {key: _arrays(points) for key, points in known.items() if points}
    if not values:
        raise UsageError(f"{file} holds no figures yet: wait for the run's first interval, or give another run")
    return Curves(str(path), values)


def _lines(file: Path) -> list[dict[str, Any]]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror}): give the folder of a training run") from None
    found = []
    for number, text in enumerate(data.split(b"\n"), 1):
        try:
            line = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError):  # cut short by a kill, or by a write that is going on
            logger.warning("%s line %d is no JSON and is left out", file, number)
            continue
        if isinstance(line, dict):
            found.append(line)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) < 2**1000


def _arrays(points: dict[float, float]) -> tuple[Numbers, Numbers]:
    steps = sorted(points)
    return np.array(steps, np.float64), np.array([points[step] for step in steps], np.float64)
