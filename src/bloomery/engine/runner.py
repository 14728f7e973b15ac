"""Runs one ragged batch through the decoder: prefill, chunk, decode and score are the same call.

Owns the decoder and its cache; does not know what the results are for.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from bloomery.engine.recorded import Recorded
from bloomery.engine.scheduler import Work
from bloomery.engine.shapes import HEAD_AT_ONCE, Shapes
from bloomery.model.cache import CachedAttention, KVCache
from bloomery.model.decoder import Decoder
from bloomery.ops.attention import Span
from bloomery.ops.choice import has_native, has_native_attention


@dataclass(frozen=True)
class Result:
    """Wanted positions of one piece of work, or a part of them: logits (W, V) fp32, unless not asked for, and hidden
    states (W, E)."""

    work: Work
    logits: Tensor | None
    hidden: Tensor


class Runner:
    """The decoder, its block pool, and the one way to call them.

    Args:
        shapes: how steps are padded; padding needs a cache with a scratch block.
        softmax: what attention's scores and softmax are computed in; None: as the fused kernel does.
        record: whether decoding steps may be recorded.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        shapes: Shapes | None = None,
        softmax: torch.dtype | None = None,
        *,
        record: bool = True,
    ) -> None:
        self.decoder = decoder
        self.cache = cache
        self.shapes = shapes or Shapes()
        self.softmax = softmax
        self.rule = decoder.attention_rule
        self.recorded = Recorded(decoder, possible=record)
        ours = has_native(decoder.dtype, decoder.device) and has_native_attention(cache.dtype, cache.device)
        self.native = record and ours and softmax in (None, torch.float32)
        """Whether all of the decoder that takes time is computed by our own kernels."""

    @torch.inference_mode()
    def run(self, batch: list[Work]) -> Iterator[Result]:
        """Run all of a batch's tokens at once, flat, one row after the other.

        The head is computed as the results are taken, so that few logits exist at a time.
        """
        device = self.decoder.device
        spans = [self._span(work) for work in batch]
        wanted = _wanted(batch, spans)
        count = len(wanted)
        spans += self._nobody(spans)
        wanted += [0] * (self.shapes.wanted(count) - count)
        rows = [work.row.ids for work in batch] + [[0]] * (len(spans) - len(batch))
        ids = [token for row, span in zip(rows, spans, strict=True) for token in row + [0] * span.padding]
        places = [place for span in spans for place in _positions(span)]
        inputs = torch.tensor(ids, device=device), torch.tensor(places, device=device)  # (N,) each
        attend = CachedAttention(self.cache, spans, self.rule, self.softmax)
        if wanted == list(range(len(ids))) and self.recorded.takes(len(spans), attend):
            hidden = self.recorded.run(*inputs, attend)[:count]
        else:
            some = torch.tensor(wanted, dtype=torch.long, device=device)  # (W,)
            hidden = self.decoder(*inputs, attend, some)[:count]  # (W, E)
        first = 0
        for works in _portions([work for work in batch if work.row.wanted]):
            count = sum(work.row.wanted for work in works)
            yield from self._portion(works, hidden[first : first + count])
            first += count

    def _span(self, work: Work) -> Span:
        length = len(work.row.ids)
        padding = self.shapes.tokens(length) - length
        return Span(work.start, length, work.blocks, padding, self.shapes.reach(work.start + length))

    def _nobody(self, spans: list[Span]) -> list[Span]:
        """Rows of one token that fill up those of one token each; they write and read the scratch block alone."""
        singles = sum(span.length == 1 for span in spans)
        missing = self.shapes.singles(singles, alone=singles == len(spans)) - singles
        if not missing:
            return []
        assert self.cache.scratch is not None
        return [Span(0, 1, (self.cache.scratch,))] * missing

    def _portion(self, works: list[Work], hidden: Tensor) -> Iterator[Result]:
        for part in hidden.split(HEAD_AT_ONCE):
            logits = self._logits(part) if works[0].row.head else None
            first = 0
            for work in works:
                rows = slice(first, first + min(work.row.wanted, HEAD_AT_ONCE))
                yield Result(work, None if logits is None else logits[rows], part[rows])
                first = rows.stop

    def _logits(self, hidden: Tensor) -> Tensor:
        """(W, E) -> (W, V)."""
        missing = self.shapes.logits(len(hidden)) - len(hidden)
        return self.decoder.logits(pad(hidden, (0, 0, 0, missing)) if missing else hidden)[: len(hidden)]


def _positions(span: Span) -> list[int]:
    """Places of a row's tokens in its sequence; padding takes the first, which every model has."""
    return [*range(span.start, span.start + span.length), *[0] * span.padding]


def _wanted(batch: list[Work], spans: list[Span]) -> list[int]:
    """Flat places of the last `wanted` tokens of each piece."""
    places: list[int] = []
    first = 0
    for work, span in zip(batch, spans, strict=True):
        end = first + span.length
        places += range(end - work.row.wanted, end)
        first = end + span.padding
    return places


def _portions(works: list[Work]) -> Iterator[list[Work]]:
    """Neighbours whose logits fit together; a piece that wants more than fits stands alone and is split."""
    portion: list[Work] = []
    for work in works:
        total = sum(member.row.wanted for member in portion) + work.row.wanted
        if portion and (total > HEAD_AT_ONCE or portion[0].row.head != work.row.head):
            yield portion
            portion = []
        portion.append(work)
    if portion:
        yield portion
