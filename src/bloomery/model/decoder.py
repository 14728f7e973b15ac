"""The one decoder, written for one device. Knows no ranks, no bits, no files and no cache.

Letters used at every line of `model/`: N flat tokens of a step, E hidden size, H heads of queries, K heads of keys and
values, D head size, V vocabulary.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bloomery.model.attention import Angles, Attend, Attention
from bloomery.model.config import DecoderConfig, RotaryConfig
from bloomery.model.layers import LayerNorm, Linear, RMSNorm
from bloomery.model.mlp import Experts, Mlp
from bloomery.ops.activation import add, widened
from bloomery.ops.embedding import embed
from bloomery.ops.position import AttentionRule, alibi_slopes, rotary_frequencies, scale_by_wavelength
from bloomery.ops.rotary import rotary_angles


class Embedding(nn.Module):
    """Token vectors, plus learned positions or a LayerNorm where the configuration has them."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.tokens = _table(config.vocab_size, config.hidden_size)
        learned = config.positions == "learned"
        self.positions = _table(config.max_seq_len, config.hidden_size) if learned else None
        self.norm = LayerNorm(config.hidden_size, config.norm_eps) if config.embed_norm else None

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:  # (N,), (N,) -> (N, E)
        return self.place(embed(ids, self.tokens.weight), positions)

    def place(self, vectors: Tensor, positions: Tensor) -> Tensor:  # (N, E), (N,) -> (N, E)
        """What becomes of token vectors, or of what stands in their place."""
        x = vectors if self.positions is None else embed(positions, self.positions.weight, plus=vectors)
        return x if self.norm is None else self.norm(x)


def _table(rows: int, width: int) -> nn.Embedding:
    """Zeros until `load` or `init` fills it: drawing normal numbers on `meta` costs 1.5 s and 70 MB of imports."""
    return nn.Embedding.from_pretrained(torch.zeros(rows, width), freeze=False)


def _norm(config: DecoderConfig) -> LayerNorm | RMSNorm:
    kind = RMSNorm if config.norm == "rms" else LayerNorm
    return kind(config.hidden_size, eps=config.norm_eps)


class Rotary(nn.Module):
    """Positions -> angles. Frequencies follow from the configuration: they are no weights, and stay in fp32."""

    def __init__(self, config: RotaryConfig) -> None:
        super().__init__()
        self.config = config
        self.frequencies = self._frequencies(torch.device("cpu"))

    def _frequencies(self, device: torch.device) -> Tensor:  # (half,)
        config = self.config
        plain = rotary_frequencies(config.dims, config.theta, device)
        if config.scaling == "linear":
            return plain / config.factor
        if config.scaling == "by_wavelength":
            band = (config.low_freq_factor, config.high_freq_factor, config.original_max_seq_len)
            return scale_by_wavelength(plain, config.factor, *band)
        return plain

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rotary":
        self.frequencies = self._frequencies(fn(self.frequencies).device)  # a change of dtype must not round them
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def forward(self, positions: Tensor, x: Tensor) -> Angles:  # (N,), (N, E)
        return Angles(*rotary_angles(positions, self.frequencies, x))


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised copy, added to their input: one after the other, or at once."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.residual = config.residual
        self.norm1 = _norm(config)
        self.attn = Attention(config, layer)
        self.norm2 = nn.Identity() if config.residual == "parallel_one_norm" else _norm(config)
        self.mlp = Experts(config) if config.num_experts > 1 else Mlp(config)

    def forward(self, x: Tensor, angles: Angles | None, attend: Attend) -> Tensor:  # (N, E) -> (N, E)
        normed = self.norm1(x)
        attended = self.attn(normed, angles, attend)
        if self.residual == "sequential":
            x = add(x, attended)
            return add(x, self.mlp(self.norm2(x)))
        return add(add(x, attended), self.mlp(self.norm2(x if self.residual == "parallel" else normed)))


class Decoder(nn.Module):
    """A decoder-only transformer over flat tokens: which of them form a sequence is known to `attend` alone."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config)
        self.rotary = Rotary(config.rotary) if config.rotary is not None else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = _norm(config)
        self.head = Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        if config.tied_head:
            self.head.weight = self.embed.tokens.weight

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        """Hidden states after the last norm, ready for `logits`.

        Args:
            ids, positions: (N,) token ids and their places in their sequences.
            wanted: (W,) the flat tokens whose states are wanted; None: all.

        Returns: (W, E).
        """
        return self.from_vectors(self.embed(ids, positions), positions, attend, wanted)

    def from_vectors(self, x: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        """As `forward`, from what the embedding gives: (N, E) -> (W, E)."""
        angles = None if self.rotary is None else self.rotary(positions, x)
        for block in self.blocks:
            x = block(x, angles, attend)
        return self.norm(x if wanted is None else embed(wanted, x))

    def logits(self, hidden: Tensor) -> Tensor:
        """(W, E) -> (W, V) in fp32. Apart from `forward`, so that nobody needs a full [T, V] tensor."""
        return widened(self.head(hidden))

    @property
    def attention_rule(self) -> AttentionRule:
        """What `Attend` has to know of this decoder, on its device."""
        config = self.config
        shared = config.num_heads // config.num_kv_heads
        if config.positions not in ("alibi", "alibi_coarse"):
            return AttentionRule(shared, window=config.sliding_window)
        return AttentionRule(
            shared,
            slopes=torch.tensor(alibi_slopes(config.num_heads), device=self.device),
            coarse_scale=1 / math.sqrt(config.head_dim) if config.positions == "alibi_coarse" else None,
            window=config.sliding_window,
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device
