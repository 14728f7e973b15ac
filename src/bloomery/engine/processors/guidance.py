"""Classifier-free guidance as a processor: away from what the model says behind another prompt. Runs no model."""

import torch
from torch import Tensor


class Guidance:
    """Away from `against`, the logits behind another prompt: (B, V), set anew before each call.

    With log-probabilities p of the text and n of the other, scale × (p - n) + n (Sanchez et al. 2023,
    https://arxiv.org/abs/2306.17806): 1 is the text alone, 0 the other, and above 1 counts what sets the text apart.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.against: Tensor | None = None

    def __call__(self, history: Tensor, logits: Tensor) -> Tensor:
        assert self.against is not None
        other = self.against.log_softmax(-1)
        return torch.sub(logits.log_softmax(-1), other).mul_(self.scale).add_(other)
