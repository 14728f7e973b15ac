"""Runs one ragged batch through the decoder: prefill, chunk, decode and score are the same call.

Owns the decoder and its cache; does not know what the results are for.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bloomery.engine.scheduler import Work
from bloomery.model.cache import CachedAttention, KVCache
from bloomery.model.decoder import Decoder
from bloomery.ops.attention import Span

HEAD_AT_ONCE = 64
"""Most positions whose logits exist at one time: 64 rows of a 250,880-token vocabulary are 64 MB in fp32."""


@dataclass(frozen=True)
class Result:
    """Wanted positions of one piece of work, or a part of them: logits (W, V) fp32, unless not asked for, and hidden
    states (W, E)."""

    work: Work
    logits: Tensor | None
    hidden: Tensor


class Runner:
    """The decoder, its block pool, and the one way to call them."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self.decoder = decoder
        self.cache = cache
        self.rule = decoder.attention_rule

    @torch.inference_mode()
    def run(self, batch: list[Work]) -> Iterator[Result]:
        """Run all of a batch's tokens at once, flat, one row after the other.

        The head is computed as the results are taken, so that few logits exist at a time.
        """
        device = self.decoder.device
        spans = [Span(work.start, len(work.row.ids), work.blocks) for work in batch]
        ids = torch.tensor([token for work in batch for token in work.row.ids], device=device)  # (N,)
        positions = torch.tensor([p for s in spans for p in range(s.start, s.start + s.length)], device=device)
        wanted = torch.tensor(_wanted(batch), dtype=torch.long, device=device)  # (W,)
        hidden = self.decoder(ids, positions, CachedAttention(self.cache, spans, self.rule), wanted)  # (W, E)
        first = 0
        for works in _portions([work for work in batch if work.row.wanted]):
            count = sum(work.row.wanted for work in works)
            yield from self._portion(works, hidden[first : first + count])
            first += count

    def _portion(self, works: list[Work], hidden: Tensor) -> Iterator[Result]:
        for part in hidden.split(HEAD_AT_ONCE):
            logits = self.decoder.logits(part) if works[0].row.head else None
            first = 0
            for work in works:
                rows = slice(first, first + min(work.row.wanted, HEAD_AT_ONCE))
                yield Result(work, None if logits is None else logits[rows], part[rows])
                first = rows.stop


def _wanted(batch: list[Work]) -> list[int]:
    """Flat places of the last `wanted` tokens of each piece."""
    places: list[int] = []
    end = 0
    for work in batch:
        end += len(work.row.ids)
        places += range(end - work.row.wanted, end)
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
