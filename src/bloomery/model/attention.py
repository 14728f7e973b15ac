"""Self-attention of one block. Knows neither where keys and values are kept nor which tokens belong together."""

from typing import NamedTuple, Protocol

from torch import Tensor, nn

from bloomery.model.config import DecoderConfig
from bloomery.model.layers import Linear
from bloomery.ops.rotary import rotate


class Attend(Protocol):
    """What a decoder is handed for a step: it keeps the new keys and values and attends to all that may be seen."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N, H, D), (N, K, D) twice -> (N, H, D)."""
        ...


class Angles(NamedTuple):
    """How far each token's queries and keys are turned, the same in all layers: (N, half) fp32 each."""

    cos: Tensor
    sin: Tensor


class Attention(nn.Module):
    """Fused projection, rotary positions where there are any, attention, output projection."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        # Rows of the fused projection: for each head of keys and values its queries, its key, its value.
        self.groups = (config.num_kv_heads, config.num_heads // config.num_kv_heads + 2, config.head_dim)  # (K, G+2, D)
        width = config.num_heads * config.head_dim
        self.qkv = Linear(config.hidden_size, width + 2 * config.num_kv_heads * config.head_dim, bias=config.attn_bias)
        self.out = Linear(width, config.hidden_size, bias=config.attn_bias)

    def forward(self, x: Tensor, angles: Angles | None, attend: Attend) -> Tensor:  # (N, E) -> (N, E)
        qkv = self.qkv(x).unflatten(-1, self.groups)
        # Split, not sliced: the gradients of three slices would each be a tensor of all, zeroed and added.
        query, key, value = qkv.split((self.groups[1] - 2, 1, 1), dim=-2)
        if angles is None:
            query, key = query.flatten(-3, -2), key.flatten(-3, -2)
        else:
            query, key = rotate(query, *angles), rotate(key, *angles)
        return self.out(attend(self.layer, query, key, value.flatten(-3, -2)).flatten(-2))
