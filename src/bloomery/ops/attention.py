"""Scaled dot-product attention over blocks of keys and values, and over whole sequences; knows no module.

Letters: N flat tokens of a step, R rows, T new tokens of a row, S key positions, H heads, D head size, B blocks.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

BLOCK = 64
"""Positions of one KV block, and the step in which attended lengths grow."""


class Span(NamedTuple):
    """The part of a sequence that one step computes: tokens `start … start+length` of the sequence held in `blocks`."""

    start: int
    length: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Spans of equal length: they attend in one call."""

    # Slices where what they pick is consecutive, so that nothing is gathered.
    tokens: Tensor | slice  # (R*T,) where their tokens stand in the flat step
    blocks: Tensor | slice  # (R, B) their blocks
    bias: Tensor  # (R, H or 1, T, S) fp32, added to the scores: ALiBi, and -inf where a key must not be seen


def group_spans(spans: list[Span], slopes: Tensor | None, device: torch.device, *, together: bool) -> list[Group]:
    """Sort the spans of a step into groups and compute what all layers share.

    Args:
        spans: in the order in which their tokens are laid out.
        slopes: (H,) ALiBi slopes, or None.
        together: spans of one length make one group; else each is its own.
    """
    groups: dict[tuple[int, int], list[tuple[int, Span]]] = {}
    first = 0
    for place, span in enumerate(spans):
        groups.setdefault((span.length, 0 if together else place), []).append((first, span))
        first += span.length
    return [_group(members, length, slopes, device) for (length, _), members in groups.items()]


def _group(members: list[tuple[int, Span]], length: int, slopes: Tensor | None, device: torch.device) -> Group:
    arange = torch.arange(length, device=device)
    starts = torch.tensor([span.start for _, span in members], device=device)
    places = [place for first, _ in members for place in range(first, first + length)]
    count = max(-(-(span.start + length) // BLOCK) for _, span in members)
    # A shorter row repeats its own first block: those positions are masked, and no other row's values can reach it.
    rows = [(span.blocks[:count] + (span.blocks[0],) * count)[:count] for _, span in members]
    queries = starts[:, None] + arange  # (R, T)
    return Group(
        tokens=_index(places, device),
        blocks=_index(list(rows[0]), device) if len(rows) == 1 else torch.tensor(rows, device=device),
        bias=position_bias(queries, count * BLOCK, slopes),
    )


def _index(places: list[int], device: torch.device) -> Tensor | slice:
    first, last = places[0], places[-1]
    return slice(first, last + 1) if places == list(range(first, last + 1)) else torch.tensor(places, device=device)


def position_bias(queries: Tensor, length: int, slopes: Tensor | None) -> Tensor:
    """(R, H or 1, T, S) fp32: slope * (key - query), and -inf for keys after the query.

    Distances instead of absolute key positions (which some implementations add) change nothing in the softmax, as it
    is invariant to a shift per query, and keep the numbers near a query small, so that they round less.
    """
    keys = torch.arange(length, device=queries.device)
    distance = (keys - queries[..., None])[:, None]  # (R, 1, T, S)
    bias = torch.zeros_like(distance, dtype=torch.float32) if slopes is None else distance * slopes[:, None, None]
    return bias.masked_fill(distance > 0, -torch.inf)


def attend_blocks(query: Tensor, keys: Tensor, values: Tensor, groups: list[Group]) -> Tensor:
    """Attention of a step's tokens to their sequences' blocks.

    Args:
        query: (N, H, D).
        keys, values: (blocks, BLOCK, H, D), the new tokens' own rows already written; computed in their dtype.

    Returns: (N, H, D), in the query's dtype.
    """
    out = torch.empty_like(query)
    for group in groups:
        rows, _, new, _ = group.bias.shape
        q = query[group.tokens].to(keys.dtype).unflatten(0, (rows, new)).transpose(1, 2)  # (R, H, T, D)
        k, v = (
            cached[group.blocks].reshape(rows, -1, *cached.shape[-2:]).transpose(1, 2)  # (R, H, S, D)
            for cached in (keys, values)
        )
        # Fused CUDA kernels take a mask in the query's dtype alone; on a CPU the bias stays in fp32.
        bias = group.bias if q.device.type == "cpu" else group.bias.to(q.dtype)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out[group.tokens] = attended.transpose(1, 2).flatten(0, 1)
    return out


def attend_causal(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention within whole sequences of equal length, differentiable.

    Args:
        query, key, value: (B, T, H, D).
        bias: (1, H or 1, T, T) from `position_bias`.

    Returns: (B, T, H, D).
    """
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
