"""A decoder's parameters by name: their shapes, and how each is cut across ranks. Knows no file and no process.

Tensor parallelism as in Shoeybi et al. 2019 ("Megatron-LM", section 3): each rank computes some of the heads and some
of the feed-forward, and adds up what they write with the other ranks, once after attention and once after each
feed-forward. K, G and D are heads of keys and values, the heads of queries that share one, and the head size.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.model.config import DecoderConfig
from bloomery.model.decoder import Decoder

Ranges = Callable[[DecoderConfig, int, int], tuple[range, ...]]
"""(configuration, ranks, rank) -> the indices that a rank keeps, in the order in which it keeps them."""


class Split(NamedTuple):
    """How a kind of parameter is cut: along which dimension, and what of it each rank keeps."""

    dim: int
    ranges: Ranges


class Cut(NamedTuple):
    """What one rank keeps of one parameter."""

    dim: int
    ranges: tuple[range, ...]

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what is kept of a tensor of shape `whole`."""
        kept = sum(len(part) for part in self.ranges)
        return (*whole[: self.dim], kept, *whole[self.dim + 1 :])

    def take(self, whole: Tensor) -> Tensor:
        """What is kept of a tensor: a view of it where that is one range, else a copy."""
        parts = [whole.narrow(self.dim, part.start, len(part)) for part in self.ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)


def _vocabulary(config: DecoderConfig, tp: int, rank: int) -> tuple[range, ...]:
    """As torch.chunk: equal portions but for the last ones, which may be smaller or empty. Nothing is padded."""
    portion = -(-config.vocab_size // tp)
    return (range(min(rank * portion, config.vocab_size), min((rank + 1) * portion, config.vocab_size)),)


def _fused_heads(config: DecoderConfig, tp: int, rank: int) -> tuple[range, ...]:
    """Rows [K, G queries | key | value, D]: whole groups, or of one group some queries with its key and its value."""
    groups, size = config.num_kv_heads, config.head_dim
    shared = config.num_heads // groups
    rows = (shared + 2) * size
    if tp <= groups:
        kept = groups // tp * rows
        return (range(rank * kept, (rank + 1) * kept),)
    ranks = tp // groups  # that share a group, and each have a copy of its key and value
    first, kept = rank // ranks * rows, shared // ranks * size
    query, key = first + rank % ranks * kept, first + shared * size
    return range(query, query + kept), range(key, key + size), range(key + size, key + 2 * size)


def _heads(config: DecoderConfig, tp: int, rank: int) -> tuple[range, ...]:
    """Columns [H, D], in the order of the groups."""
    kept = config.num_heads // tp * config.head_dim
    return (range(rank * kept, (rank + 1) * kept),)


def _feed_forward(config: DecoderConfig, tp: int, rank: int) -> tuple[range, ...]:
    kept = config.ffn_size // tp
    return (range(rank * kept, (rank + 1) * kept),)


SPLIT: dict[str, Split | None] = {
    "embed.tokens.weight": Split(0, _vocabulary),
    "embed.positions.weight": None,
    "embed.norm.weight": None,
    "embed.norm.bias": None,
    "norm1.weight": None,
    "norm1.bias": None,
    "attn.qkv.weight": Split(0, _fused_heads),
    "attn.qkv.bias": Split(0, _fused_heads),
    "attn.out.weight": Split(1, _heads),
    "attn.out.bias": None,  # whole on each rank, but added by one: it comes after the sum over ranks
    "norm2.weight": None,
    "norm2.bias": None,
    "mlp.router.weight": None,
    "mlp.gate.weight": Split(0, _feed_forward),
    "mlp.gate.bias": Split(0, _feed_forward),
    "mlp.up.weight": Split(0, _feed_forward),
    "mlp.up.bias": Split(0, _feed_forward),
    "mlp.down.weight": Split(1, _feed_forward),
    "mlp.down.bias": None,  # as attn.out.bias
    "norm.weight": None,
    "norm.bias": None,
    "head.weight": Split(0, _vocabulary),
    "head.bias": Split(0, _vocabulary),
}
"""By name within a block (or an expert), how a parameter is cut; None: whole on each rank."""


def split_of(name: str) -> Split | None:
    """The row of `SPLIT` for a parameter's full name."""
    return SPLIT[re.sub(r"^blocks\.\d+\.|(?<=\.)experts\.\d+\.", "", name)]


def cut_of(name: str, config: DecoderConfig, tp: int, rank: int) -> Cut | None:
    """What rank `rank` of `tp` keeps of a parameter; None: all of it. `check_tp` says whether that can be."""
    split = split_of(name)
    return None if split is None else Cut(split.dim, split.ranges(config, tp, rank))


def check_tp(config: DecoderConfig, tp: int) -> None:
    """Refuse a number of ranks that a model cannot be cut into.

    Raises:
        UsageError: names what it does not divide.
    """
    reason = _why_not(config, tp)
    if reason:
        possible = ", ".join(str(n) for n in range(1, config.num_heads + 1) if not _why_not(config, n))
        raise UsageError(f"tp is {tp}, but {reason}: give one of {possible}")


def _why_not(config: DecoderConfig, tp: int) -> str:
    if tp < 1:
        return "there is at least one rank"
    if config.num_heads % tp:
        return f"{config.num_heads} heads do not divide by it"
    if config.num_kv_heads % tp and tp % config.num_kv_heads:
        return f"{config.num_kv_heads} heads of keys and values neither divide by it nor it by them"
    if config.ffn_size % tp:
        return f"the feed-forward size of {config.ffn_size} does not divide by it"
    return ""


def shapes(config: DecoderConfig) -> dict[str, Tensor]:
    """Every parameter's name -> a tensor of its shape on `meta`, in the order in which a step reads them.

    A tied head has no parameter of its own.
    """
    with torch.device("meta"):
        return dict(Decoder(config).named_parameters())
