"""Rearrangements between their tensors and ours. Knows no family, no name and no file.

Matrices of linear layers are [out, in]; a Conv1D keeps its own as [in, out].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bloomery.families.rules import Reorder
from bloomery.model.config import DecoderConfig

if TYPE_CHECKING:  # a package imports without torch, and the tensors here are only named
    from torch import Tensor


def _split_fused(x: Tensor, config: DecoderConfig) -> Tensor:
    """[q|k|v, heads, head_dim] rows -> [heads, q|k|v, head_dim] rows."""
    return x.unflatten(0, (3, config.num_heads, config.head_dim)).transpose(0, 1).flatten(0, 2)


def _join_fused(x: Tensor, config: DecoderConfig) -> Tensor:
    return x.unflatten(0, (config.num_heads, 3, config.head_dim)).transpose(0, 1).flatten(0, 2)


def _join_apart(parts: list[Tensor], config: DecoderConfig) -> Tensor:
    """q, k and v of their own, rows [heads, head_dim] each -> rows [kv_groups, q…q|k|v, head_dim]."""
    whole = parts[0].new_empty((sum(len(part) for part in parts), *parts[0].shape[1:]))
    for place, part in zip(_parts(whole, config), parts, strict=True):
        place.copy_(part.unflatten(0, place.shape[:3]))
    return whole


def _split_apart(x: Tensor, config: DecoderConfig) -> list[Tensor]:
    return [part.flatten(0, 2) for part in _parts(x, config)]


def _parts(x: Tensor, config: DecoderConfig) -> tuple[Tensor, ...]:
    """Views of the rows of q, k and v: [kv_groups, heads of one group, head_dim]."""
    shared = config.num_heads // config.num_kv_heads
    return x.unflatten(0, (config.num_kv_heads, shared + 2, config.head_dim)).split((shared, 1, 1), dim=1)


transposed = Reorder(lambda x, _: x[0].T, lambda x, _: [x.T], transposes=True)
qkv_by_head = Reorder(lambda x, c: _split_fused(x[0], c), lambda x, c: [_join_fused(x, c)])
qkv_by_head_transposed = Reorder(
    lambda x, c: _split_fused(x[0].T, c), lambda x, c: [_join_fused(x, c).T], transposes=True
)
qkv_apart = Reorder(_join_apart, _split_apart)
