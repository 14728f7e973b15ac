"""Attention over blocks by our own kernel, for inference on a CPU. Knows no module; letters as in `attention.py`.

An output's bits depend on its query, its position and its sequence's keys and values alone: not on how many tokens a
step has, nor on what else is computed beside them, nor on threads.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bloomery.ops.attention import BLOCK, Span
from bloomery.ops.kept import Kept
from bloomery.ops.native.calls import DTYPES, KEPT_DTYPES, address, call
from bloomery.ops.position import AttentionRule

TILE = 64
"""Most queries that go through a block together: what making its keys and values ready costs is shared among them."""
LEAST_TILE = 4
"""Queries that share what they load; smaller tiles, made so that every thread has one, would save nothing."""


@dataclass(frozen=True)
class Plan:
    """What all layers of a step share, as the kernel reads it."""

    tiles: Tensor  # (tiles, 5) token, start, first and last query, place in `table`
    table: Tensor  # blocks of all rows, one row after the other
    padded: bool  # some tokens belong to no tile
    slopes: Tensor | None  # (H,) fp32
    coarse_scale: Tensor | None  # (1,) fp32
    window: int

    def with_room(self) -> "Plan":
        """The same, for `follow`: in memory of its own, with room for twice as many blocks."""
        return replace(self, tiles=self.tiles.clone(), table=torch.cat((self.table, torch.zeros_like(self.table))))

    def follow(self, other: "Plan") -> bool:
        """Become another step's plan with as many tiles, in the same memory; False where it does not fit."""
        if other.tiles.shape != self.tiles.shape or len(other.table) > len(self.table) or other.padded:
            return False
        self.tiles.copy_(other.tiles)
        self.table[: len(other.table)].copy_(other.table)
        return True


def plan_step(spans: list[Span], rule: AttentionRule, kv_heads: int, threads: int) -> Plan:
    """What the kernel has to know of a step.

    Args:
        spans: in the order in which their tokens are laid out.
        threads: that there are to share the tiles and the heads of keys among.
    """
    most = TILE
    while most > LEAST_TILE and kv_heads * sum(-(-span.length * rule.shared // most) for span in spans) < threads:
        most //= 2
    tiles: list[tuple[int, int, int, int, int]] = []
    table: list[int] = []
    token = 0
    for span in spans:
        queries = span.length * rule.shared
        for first in range(0, queries, most):
            tiles.append((token, span.start, first, min(first + most, queries), len(table)))
        table += span.blocks[: -(-(span.start + span.length) // BLOCK)]
        token += span.length + span.padding
    slopes = rule.slopes
    if slopes is not None:
        slopes = (slopes if rule.coarse_scale is None else slopes.bfloat16()).float().contiguous()
    return Plan(
        tiles=torch.tensor(tiles, dtype=torch.int64),
        table=torch.tensor(table, dtype=torch.int64),
        padded=any(span.padding for span in spans),
        slopes=slopes,
        coarse_scale=None if rule.coarse_scale is None else torch.tensor([rule.coarse_scale]),
        window=rule.window or 0,
    )


def attend_natively(
    plan: Plan,
    places: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Kept,
    values: Kept,
    *,
    level: int | None = None,
    threads: int | None = None,
) -> Tensor:
    """Write a step's new keys and values into their blocks, then attend to all that may be seen.

    Args:
        places: (N,) int64, where in the blocks each new token is kept.
        query: (N, H, D); of another dtype than fp32 and bf16 it is computed in fp32.
        key, value: (N, K, D), in the query's dtype.
        keys, values: of a layer, in one of `KEPT_DTYPES`, contiguous.
        level, threads: as in `call`.

    Returns: (N, H, D), in the query's dtype; zeros for padding.
    """
    assert all(kept.is_contiguous() for kept in (*keys.tensors, *values.tensors))
    assert keys.numbers.dtype == values.numbers.dtype
    assert query.dtype == key.dtype == value.dtype
    wanted, dtype = query.dtype, query.dtype if query.dtype in DTYPES else torch.float32
    query, key, value = (x.to(dtype) for x in (query, key, value))
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    tokens, heads, size = query.shape
    out = (torch.zeros if plan.padded else torch.empty)(query.shape, dtype=dtype)
    call(
        "attention",
        *(address(x) for x in (query, key, value, out)),
        *(address(x) for x in (keys.numbers, values.numbers, keys.scales, values.scales)),
        *(address(x) for x in (places, plan.tiles, plan.table, plan.slopes, plan.coarse_scale)),
        *(stride for x in (query, key, value) for stride in x.stride()[:2]),
        *(tokens, len(plan.tiles), heads, key.shape[1], size, plan.window),
        *(DTYPES[dtype], KEPT_DTYPES[keys.numbers.dtype]),
        level=level,
        threads=threads,
    )
    return out.to(wanted)
