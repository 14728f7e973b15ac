"""The one decoder, written for one device. Knows no ranks, no bits, no files and no cache.

Letters used at every line of `model/`: N flat tokens of a step, E hidden size, H heads, D head size, V vocabulary.
"""

import torch
from torch import Tensor, nn

from bloomery.model.attention import Attend, Attention
from bloomery.model.config import DecoderConfig
from bloomery.model.mlp import Mlp
from bloomery.ops.position import alibi_slopes


class Embedding(nn.Module):
    """Token vectors, plus learned positions or a LayerNorm where the configuration has them."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.tokens = _table(config.vocab_size, config.hidden_size)
        learned = config.positions == "learned"
        self.positions = _table(config.max_seq_len, config.hidden_size) if learned else None
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps) if config.embed_norm else None

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:  # (N,), (N,) -> (N, E)
        x = self.tokens(ids)
        if self.positions is not None:
            x = x + self.positions(positions)
        return x if self.norm is None else self.norm(x)


def _table(rows: int, width: int) -> nn.Embedding:
    """Zeros until `load` or `init` fills it: drawing normal numbers on `meta` costs 1.5 s and 70 MB of imports."""
    return nn.Embedding.from_pretrained(torch.zeros(rows, width), freeze=False)


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised copy added back to its input."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.attn = Attention(config, layer)
        self.norm2 = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:  # (N, E) -> (N, E)
        x = x + self.attn(self.norm1(x), attend)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """A decoder-only transformer over flat tokens: which of them form a sequence is known to `attend` alone."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.embed.tokens.weight

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        """Hidden states after the last norm, ready for `logits`.

        Args:
            ids, positions: (N,) token ids and their places in their sequences.
            wanted: (W,) the flat tokens whose states are wanted; None: all.

        Returns: (W, E).
        """
        x = self.embed(ids, positions)
        for block in self.blocks:
            x = block(x, attend)
        return self.norm(x if wanted is None else x[wanted])

    def logits(self, hidden: Tensor) -> Tensor:
        """(W, E) -> (W, V) in fp32. Apart from `forward`, so that nobody needs a full [T, V] tensor."""
        return self.head(hidden).float()

    @property
    def slopes(self) -> Tensor | None:
        """(H,) ALiBi slopes on the model's device, or None where positions are learned."""
        if self.config.positions != "alibi":
            return None
        return torch.tensor(alibi_slopes(self.config.num_heads), device=self.norm.weight.device)

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device
