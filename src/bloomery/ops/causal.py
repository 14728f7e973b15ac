"""Attention within whole sequences, differentiable, as training needs it. Knows no module.

Queries go in bands, so that keys no query of a band can see are left out, and on a CPU a band's scores stay in its
cache: they are made by plain matrix products, and made again on the way back instead of kept (Dao et al. 2022,
"FlashAttention", section 3.1). PyTorch's own attention on a CPU takes about twice as long (docs/log.md).
Elsewhere all queries are one band, which PyTorch's fused attention computes.

Letters: B sequences, T tokens of each, H heads of queries, K heads of keys and values, each of which G = H / K heads of
queries share, D head size, R queries of a band, S keys of a band, n sequences computed at once.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from bloomery.ops.position import AttentionRule, position_bias

ROWS = 128
"""Queries of a band on a CPU."""
SCORE_BYTES = 2 * 2**20
"""Of a band's fp32 scores: as many sequences are computed at once as stay within it, at least one."""


class Band(NamedTuple):
    """Consecutive queries and the keys that one of them at least may see."""

    queries: slice
    keys: slice
    bias: Tensor  # (1, K or 1, G, R, S) fp32, added to the scores
    hidden: Tensor | None = None  # (B, 1, 1, R, S) what is not seen besides


def causal_bands(length: int, rule: AttentionRule, device: torch.device) -> list[Band]:
    """The bands of sequences of so many tokens."""
    size = ROWS if device.type == "cpu" else length
    places = torch.arange(length, device=device)

    def bias(queries: slice, keys: slice) -> Tensor:
        return position_bias(places[None, queries], places[keys], rule).unflatten(2, (rule.shared, -1))

    def seen(begin: int, end: int) -> tuple[slice, slice]:
        first = 0 if rule.window is None else max(0, begin - rule.window + 1)
        return slice(begin, end), slice(first, end)

    # What remains of a division comes first: then every band is the lower right corner of the last one, where only
    # distances matter, and the biases of all are views of one.
    begins = range(length % size - size if length % size else 0, length, size)
    spans = [seen(max(0, begin), begin + size) for begin in begins]
    if rule.coarse_scale is not None:
        return [Band(queries, keys, bias(queries, keys)) for queries, keys in spans]
    last = bias(*spans[-1])
    return [Band(q, k, last[..., q.start - q.stop :, k.start - k.stop :]) for q, k in spans]


def hide_other_documents(bands: list[Band], segments: Tensor) -> list[Band]:
    """The same bands, where no token sees another document: (B, T) the document of each token."""
    return [
        band._replace(hidden=(segments[:, band.queries, None] != segments[:, None, band.keys])[:, None, None])
        for band in bands
    ]


def attend_causal(query: Tensor, key: Tensor, value: Tensor, bands: list[Band], dropout: float = 0.0) -> Tensor:
    """Attention of every token to those before it.

    Args:
        query: (B, T, H, D).
        key, value: (B, T, K, D), in the query's dtype; under autocast all are computed in its dtype.
        bands: from `causal_bands`, on the query's device.
        dropout: part of the attention weights that are dropped.

    Returns: (B, T, H, D).
    """
    if query.device.type != "cpu":
        return _attend_fused(query, key, value, bands[0], dropout)
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    seed = int(torch.randint(2**62, ())) if dropout else 0
    return _attend_in_bands(query, key, value, bands, dropout, seed)


def _attend_fused(query: Tensor, key: Tensor, value: Tensor, band: Band, dropout: float) -> Tensor:
    bias = band.bias if band.hidden is None else band.bias.masked_fill(band.hidden, -torch.inf)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    # The queries of G heads stand one after the other as if they were one head's: shared keys are never repeated.
    q = q.reshape(len(q), k.shape[1], -1, q.shape[-1])
    out = scaled_dot_product_attention(q, k, v, attn_mask=bias.flatten(2, 3).to(q.dtype), dropout_p=dropout)
    return out.reshape(len(q), query.shape[2], query.shape[1], -1).transpose(1, 2)


def _attend_in_bands(query: Tensor, key: Tensor, value: Tensor, bands: list[Band], dropout: float, seed: int) -> Tensor:
    out: Tensor = _BandedAttention.apply(query, key, value, bands, dropout, seed)  # type: ignore[no-untyped-call]
    return out


class _BandedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bands: list[Band], dropout: float, seed: int
    ) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        ctx.bands, ctx.dropout, ctx.seed = bands, dropout, seed
        random = torch.Generator().manual_seed(seed)
        with torch.autocast("cpu", enabled=False):
            for some in _in_turn(query, bands):
                k, v = _heads_first(key[some]), _heads_first(value[some])
                for band in bands:
                    q = _heads_first(query[some, band.queries], key.shape[2])
                    weights = _weights(q, k[:, band.keys], band, some)
                    if dropout:
                        weights *= _kept(weights, dropout, random)
                    mixed = torch.bmm(weights.to(q.dtype), v[:, band.keys])
                    _write(out[some, band.queries], mixed, key.shape[2])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out = ctx.saved_tensors
        heads, scale = key.shape[2], query.shape[-1] ** -0.5
        d_query, d_key, d_value = (torch.empty_like(x) for x in (query, key, value))
        random = torch.Generator().manual_seed(ctx.seed)
        for some in _in_turn(query, ctx.bands):
            k, v = _heads_first(key[some]), _heads_first(value[some])
            dk, dv = (torch.zeros_like(x, dtype=_exact(x.dtype)) for x in (k, v))  # sums over bands
            for band in ctx.bands:
                q, d_out = (_heads_first(x[some, band.queries], heads) for x in (query, slope))
                weights = _weights(q, k[:, band.keys], band, some)
                d_weights = torch.bmm(d_out, v[:, band.keys].transpose(1, 2)).to(weights.dtype)
                used = weights
                if ctx.dropout:
                    kept = _kept(weights, ctx.dropout, random)
                    used = weights * kept
                    d_weights *= kept
                dv[:, band.keys] += torch.bmm(used.to(q.dtype).transpose(1, 2), d_out)
                along = (d_out.to(dk.dtype) * _heads_first(out[some, band.queries], heads)).sum(-1, keepdim=True)
                d_scores = d_weights.sub_(along).mul_(weights).to(q.dtype)
                _write(d_query[some, band.queries], torch.bmm(d_scores, k[:, band.keys]).mul_(scale), heads)
                dk[:, band.keys] += torch.bmm(d_scores.transpose(1, 2), q)
            _write(d_key[some], dk.mul_(scale), heads)
            _write(d_value[some], dv, heads)
        return d_query, d_key, d_value, None, None, None


def _in_turn(query: Tensor, bands: list[Band]) -> Iterator[slice]:
    """Which sequences are computed at once."""
    largest = max(band.bias.shape[-1] * band.bias.shape[-2] for band in bands)
    size = max(1, SCORE_BYTES // (4 * query.shape[2] * largest))
    return (slice(begin, min(begin + size, len(query))) for begin in range(0, len(query), size))


def _weights(q: Tensor, k: Tensor, band: Band, some: slice) -> Tensor:
    """(n*K, G*R, D), (n*K, S, D) -> (n*K, G*R, S), the softmax of the scores."""
    scores = torch.bmm(q, k.transpose(1, 2)).to(_exact(q.dtype))
    apart = scores.view(some.stop - some.start, -1, *band.bias.shape[2:4], scores.shape[-1])  # (n, K, G, R, S)
    torch.add(band.bias, apart, alpha=q.shape[-1] ** -0.5, out=apart)
    if band.hidden is not None:
        apart.masked_fill_(band.hidden[some], -torch.inf)
    return torch.softmax(scores, -1)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Of sums and exponentials."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _kept(weights: Tensor, dropout: float, random: torch.Generator) -> Tensor:
    """0 where a weight is dropped, else what makes up for those that are."""
    return torch.empty_like(weights).bernoulli_(1 - dropout, generator=random).div_(1 - dropout)


def _heads_first(x: Tensor, heads: int | None = None) -> Tensor:
    """(n, R, H, D) -> (n*K, G*R, D); without `heads`, K of them, every head is its own."""
    grouped = x.unflatten(2, (heads or x.shape[2], -1)).permute(0, 2, 3, 1, 4)  # (n, K, G, R, D)
    return grouped.reshape(grouped.shape[0] * grouped.shape[1], -1, grouped.shape[-1])


def _write(place: Tensor, x: Tensor, heads: int) -> None:
    """(n*K, G*R, D) into (n, R, H, D)."""
    grouped = place.unflatten(2, (heads, -1)).permute(0, 2, 3, 1, 4)
    grouped.copy_(x.view(grouped.shape))
