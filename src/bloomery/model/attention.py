"""Self-attention of one block. Knows neither where keys and values are kept nor which tokens belong together."""

from typing import Protocol

from torch import Tensor, nn

from bloomery.model.config import DecoderConfig


class Attend(Protocol):
    """What a decoder is handed for a step: it keeps the new keys and values and attends to all that may be seen."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N, H, D) each -> (N, H, D)."""
        ...


class Attention(nn.Module):
    """Fused projection, attention, output projection."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = (config.num_heads, 3, config.head_dim)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)  # rows: [head, q|k|v, head_dim]
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:  # (N, E) -> (N, E)
        query, key, value = self.qkv(x).unflatten(-1, self.heads).unbind(-2)  # (N, H, D) each
        return self.out(attend(self.layer, query, key, value).flatten(-2))
