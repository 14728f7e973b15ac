"""One update of the weights: loss and gradients of a global batch, a few sequences at a time, clipping, the optimizer,
and what to do when the numbers are not finite. Knows no data and no schedule.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bloomery.errors import BloomeryError
from bloomery.log import logger
from bloomery.ops.random import keyed
from bloomery.train.loss import SequenceLoss, count_of
from bloomery.train.optim import Optimizers, clip_gradients


class NotFinite(BloomeryError):
    """Too many steps in a row had to be skipped."""


@dataclass(frozen=True)
class StepResult:
    """What one step measured: nats a token, the gradients' norm before clipping, the rate used, the predictions."""

    loss: float
    grad_norm: float
    lr: float
    predicted: int
    skipped: bool


class TrainStep:
    """Takes steps; counts those that were skipped because a number was not finite: `skipped` in all, and `in_a_row` up
    to the last one. Whoever goes on with a run sets both.

    Args:
        micro: sequences computed at once; None: all of a step.
        clip: largest norm of all gradients together; 0: any.
        patience: steps skipped in a row that end the run.
        seed: of what is dropped.
    """

    def __init__(
        self,
        loss: SequenceLoss,
        optimizers: Optimizers,
        *,
        micro: int | None = None,
        clip: float = 1.0,
        patience: int = 5,
        seed: int = 0,
    ) -> None:
        self.loss, self.optimizers = loss, optimizers
        self.micro, self.clip, self.patience, self.seed = micro, clip, patience, seed
        self.skipped = self.in_a_row = 0

    def __call__(self, step: int, lr: float, windows: Tensor, segments: Tensor | None = None) -> StepResult:
        """Update the weights by one global batch.

        Gradients are those of the mean over all predictions of the batch, however it is cut into micro-batches.

        Args:
            step: its number, from 0; what is dropped depends on it.
            windows, segments: (B, T + 1), as for `SequenceLoss`.

        Raises:
            NotFinite: loss or gradients were not finite several times in a row.
        """
        self.optimizers.zero_grad()
        predicted = max(1, count_of(windows, segments))
        size = self.micro or len(windows)
        total = torch.zeros((), dtype=torch.float64)
        for place, begin in enumerate(range(0, len(windows), size)):
            part = slice(begin, begin + size)
            torch.manual_seed(keyed(self.seed, step, place) >> 1)
            loss = self.loss(windows[part], None if segments is None else segments[part]) / predicted
            loss.backward()
            total += loss.detach().to(total)
        norm = clip_gradients(self.optimizers.parameters, self.clip).item()
        skipped = not (math.isfinite(total.item()) and math.isfinite(norm))
        result = StepResult(total.item(), norm, lr, predicted, skipped)
        if skipped:
            self._skip(step, result)
        else:
            self.optimizers.step(lr)
            self.in_a_row = 0
        return result

    def _skip(self, step: int, result: StepResult) -> None:
        self.skipped += 1
        self.in_a_row += 1
        said = f"step {step + 1}: loss {result.loss}, gradient norm {result.grad_norm}"
        if self.in_a_row >= self.patience:
            raise NotFinite(
                f"{said}: {self.in_a_row} steps in a row were not finite: lower optim.lr or lengthen schedule.warmup"
            )
        logger.warning("%s: step skipped", said)
