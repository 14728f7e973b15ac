"""One update of the weights: loss, gradients, clipping, AdamW, and what to do when the numbers are not finite."""

import math
from dataclasses import dataclass

from torch import Tensor

from bloomery.errors import BloomeryError
from bloomery.log import logger
from bloomery.train.config import Optim
from bloomery.train.loss import SequenceLoss
from bloomery.train.optim import clip_gradients, learning_rate, make_optimizer

PATIENCE = 5
"""Updates in a row that may be dropped because a number is not finite; more of them mean that the run is lost."""


@dataclass(frozen=True)
class StepResult:
    """What one step measured: nats a token, the gradients' norm before clipping, the rate used."""

    loss: float
    grad_norm: float
    lr: float


class TrainStep:
    """Takes steps and counts the dropped ones."""

    def __init__(self, loss: SequenceLoss, options: Optim, steps: int) -> None:
        self.loss, self.options, self.steps = loss, options, steps
        self.optimizer = make_optimizer(loss.decoder, options)
        self.dropped = 0
        self._in_a_row = 0

    def __call__(self, step: int, windows: Tensor) -> StepResult:
        """Update the weights by one batch of windows, (B, T + 1).

        Raises:
            BloomeryError: loss or gradients were not finite several times in a row.
        """
        lr = learning_rate(self.options, step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        predicted = windows.shape[0] * (windows.shape[1] - 1)
        loss = self.loss(windows) / predicted
        loss.backward()
        norm = clip_gradients(self.loss.decoder, self.options.clip)
        result = StepResult(loss.item(), norm.item(), lr)
        if math.isfinite(result.loss) and math.isfinite(result.grad_norm):
            self.optimizer.step()
            self._in_a_row = 0
        else:
            self._drop(step, result)
        return result

    def _drop(self, step: int, result: StepResult) -> None:
        self.dropped += 1
        self._in_a_row += 1
        if self._in_a_row >= PATIENCE:
            raise BloomeryError(
                f"step {step}: loss {result.loss}, gradient norm {result.grad_norm}: {PATIENCE} updates in a row were"
                " not finite: lower optim.lr or lengthen optim.warmup_steps"
            )
        logger.warning("step %d: loss %s, gradient norm %s: update dropped", step, result.loss, result.grad_norm)
