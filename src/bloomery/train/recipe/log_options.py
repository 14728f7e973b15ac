"""Recipe section that says where a run's figures go, and what they are compared with. Knows no tensor and no file."""

import math
from dataclasses import dataclass

from bloomery.train.recipe.checked import check, check_between


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What a run says while it runs, beside metrics.jsonl, which is always written.

    Raises:
        UsageError: a number is out of its range, or a name is empty.
    """

    lines: bool = False
    """Print lines on a terminal too, instead of the live view."""
    tensorboard: bool = False
    """Write the figures for TensorBoard too, into tensorboard/ of the run."""
    wandb: str | None = None
    """Send the figures to this project of Weights & Biases too; WANDB_MODE=offline keeps them here."""
    peak_tflops: float | None = None
    """What the device can do at most, in TFLOP/s, which MFU and HFU are fractions of. Unset: from a table of GPUs, or
    measured with a matrix product."""

    def __post_init__(self) -> None:
        check(self.wandb is None or bool(self.wandb.strip()), "log.wandb is empty: name a project, or leave it out")
        check_between("log", self, 0, math.inf, "peak_tflops", open_at="low")
