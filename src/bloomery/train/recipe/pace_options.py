"""Recipe sections that say how a run moves: optimizer, learning rate, batch, and when it ends. Knows no tensor."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bloomery.train.recipe.checked import LONGEST, check, check_between, check_counts


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The rule that changes the weights.

    Raises:
        UsageError: a number is out of its range.
    """

    name: Literal["adamw", "muon"] = "adamw"
    """adamw for all weights; or muon for the matrices inside the blocks and adamw for the others."""
    lr: float = 2e-3
    """Highest learning rate, reached at the end of the warm-up."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay of the mean squared gradient."""
    eps: float = 1e-8
    """AdamW's guard against a division by zero."""
    momentum: float = 0.95
    """Muon's decay of the mean gradient."""
    weight_decay: float = 0.1
    """Weight decay, on matrices and embeddings only, never on norms and biases."""
    clip: float = 1.0
    """Largest norm of all gradients together; above it they are scaled down. 0 clips nothing."""

    def __post_init__(self) -> None:
        check(self.name in ("adamw", "muon"), f"optim.name '{self.name}' is not one of: adamw, muon")
        check_between("optim", self, 0, math.inf, "lr", "eps", open_at="low")
        check_between("optim", self, 0, 1, "beta1", "beta2", "momentum", open_at="high")
        check_between("optim", self, 0, math.inf, "weight_decay", "clip")
        check(
            self.name == "muon" or self.momentum == Optim.momentum, "optim.momentum is muon's: leave it out for adamw"
        )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over a run: a linear warm-up, then a way down.

    Raises:
        UsageError: a number is out of its range.
    """

    kind: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """cosine: half a cosine down; linear: straight down; constant: no way down; wsd: constant, and straight down in the
    last `decay` units (warm-up, stable, decay)."""
    unit: Literal["steps", "samples", "tokens"] = "steps"
    """What warmup and decay count."""
    warmup: int = 100
    """Units in which the learning rate rises."""
    decay: int | None = None
    """cosine, linear: units from the start at which the lowest rate is reached; unset: the whole run. wsd: units of the
    way down; unset: a tenth of the run."""
    min_lr_ratio: float = 0.1
    """The lowest learning rate, as a fraction of the highest."""

    def __post_init__(self) -> None:
        kinds, units = ("cosine", "linear", "constant", "wsd"), ("steps", "samples", "tokens")
        check(self.kind in kinds, f"schedule.kind '{self.kind}' is not one of: {', '.join(kinds)}")
        check(self.unit in units, f"schedule.unit '{self.unit}' is not one of: {', '.join(units)}")
        check_counts("schedule", self, "warmup", least=0, most=LONGEST)
        check_counts("schedule", self, "decay", most=LONGEST)
        check_between("schedule", self, 0, 1, "min_lr_ratio")
        check(
            self.kind != "constant" or self.decay is None,
            "schedule.decay is for a rate that goes down, and schedule.kind is constant: leave one out",
        )
        check(
            self.kind != "constant" or self.min_lr_ratio == Schedule.min_lr_ratio,
            "schedule.min_lr_ratio is for a rate that goes down, and schedule.kind is constant: leave one out",
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step learns from.

    Raises:
        UsageError: a number is out of its range, or two do not go together.
    """

    size: int = 8
    """Sequences of one step, whatever it is computed on."""
    micro: int | None = None
    """Sequences computed at once; their gradients add up to the step's. Unset: all of them."""
    ramp_start: int | None = None
    """Sequences of the first steps, where the batch grows to `size`."""
    ramp_increment: int | None = None
    """By how many sequences the batch grows at a time."""
    ramp_samples: int | None = None
    """Samples after which the batch has its full size."""
    short_start: int | None = None
    """Tokens of a sequence in the first steps, where sequences grow to model.seq_len (a curriculum)."""
    short_increment: int | None = None
    """By how many tokens sequences grow at a time; unset: 8."""
    short_steps: int | None = None
    """Steps after which sequences have their full length."""

    def __post_init__(self) -> None:
        counts = ("size", "micro", "ramp_start", "ramp_increment", "short_start", "short_increment", "short_steps")
        check_counts("batch", self, *counts)
        check_counts("batch", self, "ramp_samples", most=LONGEST)
        ramp = (self.ramp_start, self.ramp_increment, self.ramp_samples)
        check(
            all(value is None for value in ramp) or all(value is not None for value in ramp),
            "batch.ramp_start, ramp_increment and ramp_samples belong together: give all three or none",
        )
        if self.ramp_start is not None and self.ramp_increment is not None:
            grown = self.size - self.ramp_start
            check(
                grown >= 0 and grown % self.ramp_increment == 0,
                f"batch.ramp_increment {self.ramp_increment} does not lead from {self.ramp_start} to {self.size}:"
                " change one",
            )
        check(
            (self.short_start is None) == (self.short_steps is None),
            "batch.short_start and short_steps belong together: give both or none",
        )
        check(
            self.short_increment is None or self.short_start is not None,
            "batch.short_increment means nothing without batch.short_start: give both or none",
        )
        check(
            self.micro is None or self.micro <= self.size,
            f"batch.micro is {self.micro}, and a step has {self.size} sequences: lower it",
        )

    @property
    def changes(self) -> bool:
        """Whether steps differ in size."""
        return self.ramp_start is not None or self.short_start is not None


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When a run ends before its length is reached: it finishes the step, saves, says how to resume, and exits with 3.
    SIGTERM, SIGUSR1 and Ctrl-C do the same.

    Raises:
        UsageError: a number is out of its range.
    """

    file: Path | None = None
    """The run ends when this file appears, and does not begin while it is there. A file STOP in the run's folder ends
    it too, and is removed then."""
    minutes: float | None = None
    """Minutes after which this start of the run ends."""
    steps: int | None = None
    """Steps after which this start of the run ends."""
    tokens: int | None = None
    """Tokens after which this start of the run ends."""
    loss: float | None = None
    """The run is done, and ends with 0, when a held-out loss of all sets is at most this."""
    skipped: int = 5
    """Steps in a row whose loss or gradients are not finite; each is skipped, and so many end the run with an error,
    after the batch has been written to bad-batch.safetensors."""

    def __post_init__(self) -> None:
        check_counts("stop", self, "steps", "skipped")
        check_counts("stop", self, "tokens", most=LONGEST)
        check_between("stop", self, 0, math.inf, "minutes", "loss", open_at="low")
