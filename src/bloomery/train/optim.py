"""The optimizer over a decoder, and clipping. Knows no data, no loss and no schedule."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from bloomery.train.recipe.pace_options import Optim


class Optimizers:
    """One optimizer, or several with a part of the weights each, as one.

    `state` is by parameter name: name -> what the optimizer keeps for it -> tensor.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], options: Optim) -> None:
        self.names = {parameter: name for name, parameter in named if parameter.requires_grad}
        adamw, muon = split(self.names, options)
        self.parts: list[Optimizer] = [_adamw(adamw, options)] if adamw else []
        if muon:
            self.parts.append(_muon(muon, options))

    def step(self, lr: float) -> None:
        """Change the weights at this learning rate."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.names)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What is kept for each parameter, the tensors themselves; made now where no step has been taken."""
        for part in self.parts:
            _make_state(part)
        kept = {cast(nn.Parameter, p): values for part in self.parts for p, values in part.state.items()}
        return {
            name: {key: value for key, value in kept[parameter].items() if isinstance(value, Tensor)}
            for parameter, name in self.names.items()
        }


def split(names: dict[nn.Parameter, str], options: Optim) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """What AdamW changes, and what Muon does: matrices inside the blocks. Embeddings and the head are tables of tokens,
    which it is not for."""
    muon = [p for p, name in names.items() if options.name == "muon" and p.ndim == 2 and name.startswith("blocks.")]
    chosen = set(muon)
    return [p for p in names if p not in chosen], muon


def _adamw(parameters: list[nn.Parameter], options: Optim) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019), its update of all parameters in one call; no decay on norms and biases."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (options.beta1, options.beta2)
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=options.lr, betas=betas, eps=options.eps, fused=True
    )


def _muon(parameters: list[nn.Parameter], options: Optim) -> Optimizer:
    """Muon (Jordan et al. 2024), its updates scaled to the size of AdamW's (Liu et al. 2025, equation 4), so that both
    take one learning rate."""
    return torch.optim.Muon(
        parameters,
        lr=options.lr,
        weight_decay=options.weight_decay,
        momentum=options.momentum,
        adjust_lr_fn="match_rms_adamw",
    )


def _make_state(part: Optimizer) -> None:
    """Moments of zeros where there are none, as the first step would make them."""
    for group in part.param_groups:
        for parameter in group["params"]:
            kept = part.state[parameter]
            if kept:
                continue
            if isinstance(part, torch.optim.AdamW):
                kept["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                kept["exp_avg"] = torch.zeros_like(parameter)
                kept["exp_avg_sq"] = torch.zeros_like(parameter)
            else:
                kept["momentum_buffer"] = torch.zeros_like(parameter)


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale all gradients so that their common norm is at most `largest`; 0 leaves them. The norm before, a scalar."""
    return clip_grad_norm_(parameters, largest if largest else float("inf"))
