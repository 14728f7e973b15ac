"""Scaled dot-product attention over blocks of keys and values; knows no module.

Letters: N flat tokens of a step, R rows, T new tokens of a row, S key positions, H heads of queries, K heads of keys
and values, each of which G = H / K heads of queries share, D head size, B blocks.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bloomery.ops.kept import Kept
from bloomery.ops.position import AttentionRule, position_bias

BLOCK = 64
"""Positions of one KV block, and the step in which attended lengths grow."""


class Span(NamedTuple):
    """The part of a sequence that one step computes: tokens `start … start+length` of the sequence held in `blocks`.

    For computations of few shapes: so many tokens of `padding` are laid out behind them, which are nobody's, and at
    least `reach` positions are read, of which those that the sequence does not have are masked.
    """

    start: int
    length: int
    blocks: tuple[int, ...]
    padding: int = 0
    reach: int = 0


@dataclass(frozen=True)
class Group:
    """Spans of equal length: they attend in one call."""

    # Slices where what they pick is consecutive, so that nothing is gathered.
    tokens: Tensor | slice  # (R*T,) where their tokens stand in the flat step
    blocks: Tensor | slice  # (R, B) their blocks
    rows: int
    bias: Tensor  # (R, K or 1, G*T, S) fp32, added to the scores


def group_spans(spans: list[Span], rule: AttentionRule, device: torch.device, *, together: bool) -> list[Group]:
    """Sort the spans of a step into groups and compute what all layers share.

    Args:
        spans: in the order in which their tokens are laid out.
        together: spans of one length make one group; else each is its own.
    """
    groups: dict[tuple[int, int], list[tuple[int, Span]]] = {}
    first = 0
    for place, span in enumerate(spans):
        length = span.length + span.padding
        groups.setdefault((length, 0 if together else place), []).append((first, span))
        first += length
    return [_group(members, length, rule, device) for (length, _), members in groups.items()]


def _group(members: list[tuple[int, Span]], length: int, rule: AttentionRule, device: torch.device) -> Group:
    places = [place for first, _ in members for place in range(first, first + length)]
    start = min(span.start for _, span in members)
    padded = any(span.reach for _, span in members)
    # Blocks that all have slid out of the window are not read, unless their number is to stay the same.
    skipped = 0 if rule.window is None or padded else max(0, start - rule.window + 1) // BLOCK
    count = max(-(-max(span.start + span.length, span.reach) // BLOCK) for _, span in members)
    # A shorter row repeats its own first block: those positions are masked, and no other row's values can reach it.
    rows = [(span.blocks[:count] + (span.blocks[0],) * count)[skipped:count] for _, span in members]
    starts, ends = torch.tensor([(span.start, span.start + span.length - 1) for _, span in members], device=device).T
    # Padding stands where the last token does: a query that sees no key would be NaN.
    queries = (starts[:, None] + torch.arange(length, device=device)).minimum(ends[:, None])  # (R, T)
    keys = torch.arange(skipped * BLOCK, count * BLOCK, device=device)
    return Group(
        tokens=_index(places, device),
        blocks=_index(list(rows[0]), device) if len(rows) == 1 else torch.tensor(rows, device=device),
        rows=len(rows),
        bias=position_bias(queries, keys, rule),
    )


def _index(places: list[int], device: torch.device) -> Tensor | slice:
    first, last = places[0], places[-1]
    return slice(first, last + 1) if places == list(range(first, last + 1)) else torch.tensor(places, device=device)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, softmax: torch.dtype | None) -> Tensor:
    """(R, T, H, D), (R, K, S, D) twice, (R, K or 1, G*T, S) -> (R, T, H, D).

    The queries of G heads stand one after the other as if they were one head's, so that shared keys and values are
    read once and never repeated.
    """
    rows, new, heads, _ = query.shape
    q = query.transpose(1, 2).reshape(rows, key.shape[1], -1, query.shape[-1])  # (R, K, G*T, D)
    if softmax is None:
        # Fused CUDA kernels take a mask in the query's dtype alone; on a CPU the bias stays in fp32.
        mask = bias if q.device.type == "cpu" else bias.to(q.dtype)
        attended = scaled_dot_product_attention(q, key, value, attn_mask=mask)
    else:
        scores = (q.to(softmax) / math.sqrt(q.shape[-1])) @ key.to(softmax).transpose(2, 3) + bias.to(softmax)
        attended = scores.softmax(-1).to(value.dtype) @ value
    return attended.reshape(rows, heads, new, -1).transpose(1, 2)


def attend_blocks(
    query: Tensor, keys: Kept, values: Kept, groups: list[Group], softmax: torch.dtype | None = None
) -> Tensor:
    """Attention of a step's tokens to their sequences' blocks.

    Args:
        query: (N, H, D).
        keys, values: of a layer, the new tokens' own rows already written; computed in what `computed_in` says.
        softmax: what scores, biases and softmax are computed in; None: fp32 within a fused kernel, which on a GPU
            takes biases in the dtype of keys and values.

    Returns: (N, H, D), in the query's dtype.
    """
    out, dtype = torch.empty_like(query), keys.computed_in(query.dtype)
    for group in groups:
        q = query[group.tokens].to(dtype).unflatten(0, (group.rows, -1))  # (R, T, H, D)
        read = (kept.read(group.blocks, dtype) for kept in (keys, values))
        blocks = (x.reshape(group.rows, -1, *x.shape[-3:]) for x in read)  # (R, B, K, BLOCK, D)
        k, v = (x.transpose(1, 2).flatten(2, 3) for x in blocks)  # (R, K, S, D)
        out[group.tokens] = _attend(q, k, v, group.bias, softmax).flatten(0, 1).to(out.dtype)
    return out
