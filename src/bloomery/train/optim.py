"""AdamW over a decoder, its schedule and its clipping. Knows no data and no loss."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from bloomery.train.config import Optim


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices and embeddings with weight decay, norms and biases without."""
    decayed = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def make_optimizer(module: nn.Module, options: Optim) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), its update of all parameters in one call."""
    return torch.optim.AdamW(
        parameter_groups(module, options.weight_decay),
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        fused=True,
    )


def learning_rate(options: Optim, step: int, steps: int) -> float:
    """The rate of update `step`, 0 … steps-1: the last of the warm-up has the highest, the last of all the lowest."""
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    lowest = options.lr * options.min_lr_ratio
    # The peak belongs to the last warm-up step, or to step 0 without one.
    peak = max(options.warmup_steps - 1, 0)
    done = (step - peak) / max(steps - 1 - peak, 1)
    return lowest + (options.lr - lowest) * 0.5 * (1 + math.cos(math.pi * done))


def clip_gradients(module: nn.Module, largest: float) -> Tensor:
    """Scale all gradients so that their common norm is at most `largest`; the norm before that, a scalar."""
    return clip_grad_norm_(module.parameters(), largest)
