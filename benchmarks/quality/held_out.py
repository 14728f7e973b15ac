"""How well a model predicts a held-out text, by two ways of cutting it into windows. Knows no compressor and no sample.

Both predict every token but the text's first, and divide by the bytes that the predicted tokens stand for. The weights
are as they are stored, the arithmetic is in float32.
"""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from bloomery import LLM
from bloomery.data import bpe
from bloomery.data.ending import end_of_document, named_ends
from bloomery.data.source import Source
from bloomery.data.tokenize import tokenize
from bloomery.errors import UsageError
from bloomery.train.evaluate import Evaluation, Evaluator
from bloomery.train.loss import SequenceLoss

BATCH = 4
"""Disjoint windows computed together."""
AT_ONCE = 64
"""Sliding windows handed over together."""

Lengths = np.ndarray[tuple[int], np.dtype[np.int64]]


class HeldOut:
    """A held-out file in a model's tokens, its end-of-document token last, as in training.

    Args:
        llm: in float32.

    Raises:
        UsageError: the model has no byte-level tokenizer, or the file cannot be read.
    """

    def __init__(self, llm: LLM, file: Path) -> None:
        described = llm.folder.tokenizer
        if llm.tokenizer is None or described is None or not bpe.is_byte_level(llm.tokenizer.backend):
            raise UsageError(f"{llm.folder.path} has no byte-level tokenizer: bits per byte cannot be counted")
        words = llm.tokenizer.backend
        with TemporaryDirectory(prefix="held-out-") as folder:
            written = tokenize(
                [file], Path(folder) / "tokens", words, eod=end_of_document(words, named_ends(described))
            )
            self.source = Source(np.array(written.source().ids, dtype=np.int64), file.name)
        self.llm = llm
        self.byte_lengths: Lengths = np.zeros(llm.decoder.config.vocab_size, dtype=np.int64)
        known = bpe.byte_lengths(words)
        self.byte_lengths[: len(known)] = known

    def disjoint(self) -> Evaluation:
        """As training measures: windows of the context's length, which do not overlap."""
        evaluator = Evaluator(self.source, self.byte_lengths, self.llm.max_seq_len, BATCH)
        return evaluator(SequenceLoss(self.llm.decoder, torch.float32))

    def sliding(self) -> Evaluation:
        """Windows of the context's length that move on by a quarter of it: each token is predicted once, with at least
        three quarters of the context before it; at the text's beginning with all that there is."""
        ids, context = self.source.ids.tolist(), self.llm.max_seq_len
        stride = max(1, context // 4)
        windows: list[Any] = [ids[:context]]
        for start in range(context, len(ids), stride):
            stop = min(start + stride, len(ids))
            windows.append((ids[stop - context : start], ids[start:stop]))
        nats: list[float] = []
        for first in range(0, len(windows), AT_ONCE):
            for score in self.llm.score(windows[first : first + AT_ONCE]):
                nats += [-logprob for logprob in score.logprobs]
        return Evaluation(math.fsum(nats), len(nats), int(self.byte_lengths[self.source.ids[1:]].sum()))

    def measure(self) -> dict[str, Any]:
        """Both, and how they were made."""
        context = self.llm.max_seq_len
        behind = context - max(1, context // 4)
        return {
            "arithmetic": "float32",
            "first_token_predicted": False,
            "disjoint": _values(self.disjoint()) | {"window": context, "stride": context},
            "sliding": _values(self.sliding())
            | {"window": context, "stride": context - behind, "least_before": behind},
        }


def _values(one: Evaluation) -> dict[str, Any]:
    return {
        "bits_per_byte": one.bits_per_byte,
        "nats_per_token": one.loss,
        "tokens_predicted": one.tokens,
        "bytes_predicted": one.text_bytes,
    }
