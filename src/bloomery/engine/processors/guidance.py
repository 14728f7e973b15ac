"""Classifier-free guidance as a processor: away from what the model says behind another prompt. Runs no model."""

import torch
from torch import Tensor


class Guidance:
    """Away from what the model says behind another prompt.

    With log-probabilities p of the text and n of the other, scale × (p - n) + n (Sanchez et al. 2023,
    https://arxiv.org/abs/2306.17806): 1 is the text alone, 0 the other, and above 1 counts what sets the text apart.

    Args:
        prompt: tokens of the history that are no text.
    """

    def __init__(self, scale: float, prompt: int) -> None:
        self.scale, self.prompt = scale, prompt
        self.against: dict[tuple[int, ...], Tensor] = {}
        """What the model says behind the other prompt and a text, of each text, by its ids: (V,) logits."""

    def __call__(self, history: Tensor, logits: Tensor) -> Tensor:
        texts = history[:, self.prompt :].tolist()
        other = torch.stack([self.against[tuple(text)] for text in texts]).log_softmax(-1)
        return torch.sub(logits.log_softmax(-1), other).mul_(self.scale).add_(other)
