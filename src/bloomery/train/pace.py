"""What each step of a run is: how many sequences, how long, at which learning rate. A pure function of how far the run
is, so that a resumed run needs nothing else. Knows no tensor.
"""

import math
from dataclasses import dataclass

from bloomery.errors import UsageError
from bloomery.train.recipe.config import TrainConfig


@dataclass(frozen=True)
class Reached:
    """How far a run is: steps taken, samples and tokens learned from."""

    steps: int = 0
    samples: int = 0
    tokens: int = 0

    def after(self, samples: int, tokens: int) -> "Reached":
        """One step further."""
        return Reached(self.steps + 1, self.samples + samples, self.tokens + tokens)


class Pace:
    """The options of a run as functions.

    Args:
        seq_len: tokens of a full sequence.

    Raises:
        UsageError: sequences that are to grow begin as long as they get, or longer.
    """

    def __init__(self, config: TrainConfig, seq_len: int) -> None:
        self.run, self.batch, self.optim, self.schedule = config.run, config.batch, config.optim, config.schedule
        self.full, short = seq_len, config.batch.short_start
        if short is not None and short >= seq_len:
            raise UsageError(
                f"batch.short_start is {short}, and a full sequence has {seq_len} tokens: lower it, or leave it out"
            )
        unit = self.schedule.unit
        self.total = config.length(unit)

    def done(self, reached: Reached) -> bool:
        """Whether the run has its length."""
        run = self.run
        asked = ((run.steps, reached.steps), (run.samples, reached.samples), (run.tokens, reached.tokens))
        return any(most is not None and is_ >= most for most, is_ in asked)

    def sequences(self, reached: Reached) -> int:
        """Sequences of the next step: of a batch that grows, as many as fit the samples so far; of the last step, as
        many as are left of the run's samples."""
        batch, size = self.batch, self.batch.size
        if batch.ramp_start is not None and batch.ramp_increment is not None and batch.ramp_samples is not None:
            increments = (size - batch.ramp_start) // batch.ramp_increment
            grown = reached.samples * increments // batch.ramp_samples
            size = batch.ramp_start + min(increments, grown) * batch.ramp_increment
        return size if self.run.samples is None else min(size, self.run.samples - reached.samples)

    def seq_len(self, reached: Reached) -> int:
        """Tokens of each sequence of the next step."""
        batch = self.batch
        if batch.short_start is None or batch.short_steps is None or reached.steps >= batch.short_steps:
            return self.full
        start, increment = batch.short_start, batch.short_increment or 8
        grown = (self.full - start) * reached.steps // batch.short_steps
        return start + grown // increment * increment

    def learning_rate(self, after: Reached) -> float:
        """The rate of the step that leads to `after`: the last one of the warm-up has the highest, the last of all the
        lowest."""
        schedule, highest = self.schedule, self.optim.lr
        place = {"steps": after.steps, "samples": after.samples, "tokens": after.tokens}[schedule.unit]
        if place < schedule.warmup:
            return highest * place / schedule.warmup
        first, last = self._way_down()
        part = min(max((place - first) / max(last - first, 1), 0.0), 1.0)
        lowest = highest * schedule.min_lr_ratio
        if schedule.kind == "cosine":
            return lowest + (highest - lowest) * 0.5 * (1 + math.cos(math.pi * part))
        return highest - (highest - lowest) * part

    def _way_down(self) -> tuple[int, int]:
        """Where it begins and ends, in the schedule's unit."""
        schedule = self.schedule
        if schedule.kind == "constant":
            return 2**62, 2**62
        if schedule.kind == "wsd":
            assert self.total is not None
            return max(schedule.warmup, self.total - (schedule.decay or max(1, self.total // 10))), self.total
        last = schedule.decay if schedule.decay is not None else self.total
        assert last is not None
        return schedule.warmup, last
