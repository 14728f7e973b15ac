"""Loss on held-out text, by token and by byte. Knows no optimizer and no tokenizer."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from bloomery.errors import UsageError
from bloomery.train.loss import SequenceLoss


@dataclass(frozen=True)
class Evaluation:
    """`nats` of surprise over `tokens` predictions, which stand for `text_bytes` bytes of text."""

    nats: float
    tokens: int
    text_bytes: int

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers, as the loss of a token is not."""
        return self.nats / math.log(2) / self.text_bytes


class Evaluator:
    """Measures on windows of T tokens that do not overlap; each token but the text's first is predicted once.

    Args:
        tokens: (N,) the held-out text.
        byte_lengths: (V,) bytes that each token stands for.
        batch_size: windows computed together; no effect on the result beyond rounding.
        most: windows measured at most; None: all, the shorter last one included.

    Raises:
        UsageError: there is nothing to predict.
    """

    def __init__(
        self,
        tokens: np.ndarray[tuple[int], np.dtype[np.unsignedinteger]],
        byte_lengths: np.ndarray[tuple[int], np.dtype[np.int64]],
        seq_len: int,
        batch_size: int,
        most: int | None = None,
    ) -> None:
        self.tokens = tokens if most is None else tokens[: most * seq_len + 1]
        self.seq_len, self.batch_size = seq_len, batch_size
        self.text_bytes = int(byte_lengths[self.tokens[1:]].sum())
        if self.text_bytes == 0:
            raise UsageError("data.valid holds less than two tokens of text, too little to measure on: add text")

    @torch.no_grad()
    def __call__(self, loss: SequenceLoss) -> Evaluation:
        nats = sum(loss(torch.from_numpy(windows)).item() for windows in self._batches())
        return Evaluation(nats, len(self.tokens) - 1, self.text_bytes)

    def _batches(self) -> Iterator[np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
        """(B, T + 1) windows, the last token of one being the first of the next."""
        length = self.seq_len
        whole = (len(self.tokens) - 1) // length
        for first in range(0, whole, self.batch_size):
            starts = range(first * length, min(first + self.batch_size, whole) * length, length)
            yield np.stack([self.tokens[at : at + length + 1] for at in starts]).astype(np.int64)
        if whole * length < len(self.tokens) - 1:
            yield self.tokens[None, whole * length :].astype(np.int64)
