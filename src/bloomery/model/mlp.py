"""The feed-forward half of a block."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from bloomery.model.config import DecoderConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "gelu": functional.gelu,
    "relu": functional.relu,
}


class Mlp(nn.Module):
    """up, activation, down."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.ffn_size)
        self.down = nn.Linear(config.ffn_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:  # (N, E) -> (N, E)
        return self.down(self.activation(self.up(x)))
