"""Loss on held-out text, by token and by byte. Knows no optimizer and no tokenizer."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from bloomery.data.source import Source
from bloomery.errors import UsageError
from bloomery.train.loss import SequenceLoss


@dataclass(frozen=True)
class Evaluation:
    """`nats` of surprise over `tokens` predictions, which stand for `text_bytes` bytes of text, where that is known."""

    nats: float
    tokens: int
    text_bytes: int | None

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Comparable between tokenizers, as the loss of a token is not."""
        return self.nats / math.log(2) / self.text_bytes if self.text_bytes else None

    def values(self, name: str) -> dict[str, float]:
        """For the metrics, by the name of the set."""
        values = {"loss": self.loss, "perplexity": self.perplexity, "tokens": self.tokens}
        if self.bits_per_byte is not None:
            values["bits_per_byte"] = self.bits_per_byte
        return {f"eval/{name}/{key}": value for key, value in values.items()}


class Windows(NamedTuple):
    """(B, T + 1) consecutive tokens, the last of one window being the first of the next."""

    ids: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    segments: np.ndarray[tuple[int, int], np.dtype[np.int64]] | None


class Evaluator:
    """Measures on windows of T tokens that do not overlap; each token but the text's first is predicted once.

    Args:
        source: the held-out text.
        byte_lengths: (V,) bytes that each token stands for; None: not known.
        batch_size: windows computed together; no effect on the result beyond rounding.
        most: windows measured at most; None: all, the shorter last one included.
        isolate_documents: no token sees another document, and none is predicted from one.

    Raises:
        UsageError: there is nothing to predict.
    """

    def __init__(
        self,
        source: Source,
        byte_lengths: np.ndarray[tuple[int], np.dtype[np.int64]] | None,
        seq_len: int,
        batch_size: int,
        most: int | None = None,
        *,
        isolate_documents: bool = False,
    ) -> None:
        self.source = source
        self.seq_len, self.batch_size, self.isolate = seq_len, batch_size, isolate_documents
        self.tokens = len(source) if most is None else min(len(source), most * seq_len + 1)
        if self.tokens < 2:
            raise UsageError(f"{source.name} holds less than two tokens of text, too little to measure on: add text")
        self.byte_lengths = byte_lengths

    @torch.no_grad()
    def __call__(self, loss: SequenceLoss) -> Evaluation:
        """The decoder's loss; it computes as it will when it is used, so that nothing is dropped."""
        decoder, nats, predicted, text_bytes = loss.decoder, 0.0, 0, 0
        was_training = decoder.training
        decoder.eval()
        try:
            for ids, segments in self._batches():
                windows, parts = (_tensor(part, decoder.device) for part in (ids, segments))
                assert windows is not None
                nats += loss(windows, parts).item()
                counted = ids[:, 1:] if segments is None else ids[:, 1:][segments[:, 1:] == segments[:, :-1]]
                predicted += counted.size
                if self.byte_lengths is not None:
                    text_bytes += int(self.byte_lengths[counted].sum())
        finally:
            decoder.train(was_training)
        return Evaluation(nats, max(predicted, 1), text_bytes if self.byte_lengths is not None else None)

    def _batches(self) -> Iterator[Windows]:
        whole = (self.tokens - 1) // self.seq_len
        for first in range(0, whole, self.batch_size):
            last = min(first + self.batch_size, whole)
            yield self._windows([at * self.seq_len for at in range(first, last)], self.seq_len + 1)
        if whole * self.seq_len < self.tokens - 1:
            yield self._windows([whole * self.seq_len], self.tokens - whole * self.seq_len)

    def _windows(self, starts: list[int], length: int) -> Windows:
        ids = np.stack([self.source.ids[at : at + length] for at in starts]).astype(np.int64)
        if not self.isolate:
            return Windows(ids, None)
        return Windows(ids, np.stack([self.source.documents(at, at + length) for at in starts]))


def _tensor(part: np.ndarray[tuple[int, int], np.dtype[np.int64]] | None, device: torch.device) -> torch.Tensor | None:
    return None if part is None else torch.from_numpy(part).to(device)


def pooled(measured: Mapping[str, Evaluation]) -> Evaluation:
    """All sets as one."""
    sizes = [one.text_bytes for one in measured.values()]
    known = sum(size for size in sizes if size is not None) if None not in sizes else None
    return Evaluation(sum(one.nats for one in measured.values()), sum(one.tokens for one in measured.values()), known)
