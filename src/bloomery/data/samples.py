"""The endless stream of packed training samples: sample i is a pure function of (seed, i). Knows no file and no model.

Fixed by (sources, weights, seq_len, seed, skip) alone: which tokens sample i holds. Neither the size of a batch, nor
how many samples were taken before, nor the number of processes that take them has a part in it, so that a run's
position in its data is one integer: samples taken.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from bloomery.data.order import Blend, Skips, permuted
from bloomery.data.source import Source
from bloomery.errors import UsageError
from bloomery.ops.random import keyed

Ids = np.ndarray[tuple[int, int], np.dtype[np.int64]]


class Windows(NamedTuple):
    """Samples, and which document each of their tokens belongs to."""

    ids: Ids
    """(B, T + 1) tokens: the inputs and, one further, what is to be predicted."""
    segments: Ids | None
    """(B, T + 1) number of the token's document within its sample, from 0 up; None where documents may see each other.
    The token that ends a document belongs to it."""


class Samples:
    """Sequences of T tokens, packed: documents follow each other, and a sequence begins and ends anywhere in them.

    Without weights the sources are one text. An epoch is every window of seq_len tokens of it once, in an order of its
    own; the windows start at an offset of its own too, so that text cut in two in one epoch is whole in another. With
    weights each source has its epochs, and sources take turns by exact quota (`order.Blend`).

    Args:
        sources: the text; each holds two sequences or more.
        seq_len: T.
        weights: one a source; None: every window as often as any other.
        isolate_documents: number the documents within each sample.
        skip: ranges "a-b" of samples to leave out. The samples after them move up; those before stay.

    Raises:
        UsageError: a source is shorter than two sequences, or there are not as many weights as sources.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seq_len: int,
        seed: int,
        weights: Sequence[float] | None = None,
        isolate_documents: bool = False,
        skip: Sequence[str] = (),
    ) -> None:
        if not sources:
            raise UsageError("data.train names no text: give one source or more")
        if weights and len(weights) != len(sources):
            raise UsageError(f"data.weights are {len(weights)} for {len(sources)} sources: give one for each")
        self.seq_len, self.isolate_documents = seq_len, isolate_documents
        self.skips = Skips(skip)
        self.blend = Blend(weights) if weights and len(sources) > 1 else None
        groups = [list(sources)] if self.blend is None else [[source] for source in sources]
        seeds = [seed] if self.blend is None else [keyed(seed, number) for number in range(len(groups))]
        self.texts = [_Epochs(group, seq_len, key) for group, key in zip(groups, seeds, strict=True)]

    @property
    def windows(self) -> tuple[int, ...]:
        """Samples of an epoch: of all sources together, or with weights of each."""
        return tuple(text.windows for text in self.texts)

    def raw(self, index: int) -> int:
        """Number of sample `index` in the run without skips: it changes where ranges were added before it."""
        return self.skips.raw(index)

    def place(self, index: int) -> tuple[Source, int]:
        """The source of sample `index`, and the place of its first token there."""
        turn, inner = (0, self.raw(index)) if self.blend is None else self.blend.place(self.raw(index))
        return self.texts[turn].place(inner)

    def take(self, first: int, count: int) -> Windows:
        """Samples first … first + count - 1, each of T + 1 tokens.

        Raises:
            UsageError: count is below 1.
        """
        if count < 1:
            raise UsageError(f"{count} samples were asked for: take 1 or more")
        length = self.seq_len + 1
        places = [self.place(index) for index in range(first, first + count)]
        ids = np.stack([source.ids[at : at + length] for source, at in places]).astype(np.int64)
        if not self.isolate_documents:
            return Windows(ids, None)
        return Windows(ids, np.stack([source.documents(at, at + length) for source, at in places]))


class _Epochs:
    """Sources as one text, epoch after epoch."""

    def __init__(self, sources: Sequence[Source], seq_len: int, seed: int) -> None:
        self.sources, self.seq_len, self.seed = sources, seq_len, seed
        # One window fewer than fit, to leave room for the offset.
        counts = [len(source) // seq_len - 1 for source in sources]
        for source, count in zip(sources, counts, strict=True):
            if count < 1:
                raise UsageError(
                    f"{source.name} holds {len(source)} tokens, less than two sequences of {seq_len}: add text or "
                    "lower the sequence length"
                )
        self.ends = list(accumulate(counts))
        self.windows = self.ends[-1]

    def place(self, index: int) -> tuple[Source, int]:
        """The source of sample `index`, and the place of its first token there."""
        epoch, place = divmod(index, self.windows)
        window = permuted(place, self.windows, keyed(self.seed, epoch, 1))
        number = bisect_right(self.ends, window)
        inner = window - (self.ends[number - 1] if number else 0)
        return self.sources[number], keyed(self.seed, epoch, 0) % self.seq_len + self.seq_len * inner
