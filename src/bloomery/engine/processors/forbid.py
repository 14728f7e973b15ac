"""Processors that forbid tokens, or all but some. They know no request."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bloomery.engine.processors.signature import Processor


def no_repeat_ngram(size: int) -> Processor:
    """No token that would end a sequence of `size` tokens which the history has already."""

    def process(history: Tensor, logits: Tensor) -> Tensor:
        if history.shape[-1] < size:
            return logits
        return _without_endings(history.unfold(-1, size, 1), history, logits)

    return process


def encoder_no_repeat_ngram(size: int, prompt: Tensor) -> Processor:
    """No token that would end a sequence of `size` tokens which the prompt (P,) has."""

    def process(history: Tensor, logits: Tensor) -> Tensor:
        if len(prompt) < size:
            return logits
        return _without_endings(prompt.to(logits.device).unfold(-1, size, 1)[None], history, logits)

    return process


def before_length(length: int, ids: Sequence[int]) -> Processor:
    """None of `ids` while the history is shorter than `length`."""
    index = torch.tensor(ids)

    def process(history: Tensor, logits: Tensor) -> Tensor:
        return logits if history.shape[-1] >= length else _without(logits, index)

    return process


def at_length(length: int, ids: Sequence[int]) -> Processor:
    """None of `ids` behind a history of exactly `length`."""
    index = torch.tensor(ids)

    def process(history: Tensor, logits: Tensor) -> Tensor:
        return _without(logits, index) if history.shape[-1] == length else logits

    return process


def always(ids: Sequence[int]) -> Processor:
    """None of `ids`."""
    index = torch.tensor(ids)
    return lambda _, logits: _without(logits, index)


def only_at_length(length: int, ids: Sequence[int]) -> Processor:
    """Nothing but `ids`, all alike, behind a history of exactly `length`."""
    index = torch.tensor(ids)

    def process(history: Tensor, logits: Tensor) -> Tensor:
        if history.shape[-1] != length:
            return logits
        return torch.full_like(logits, -torch.inf).index_fill(-1, index.to(logits.device), 0)

    return process


def invalid_values(_: Tensor, logits: Tensor) -> Tensor:
    """NaN becomes 0, infinities the largest and least finite numbers."""
    return logits.nan_to_num(nan=0.0)


def _without(logits: Tensor, index: Tensor) -> Tensor:
    return logits.index_fill(-1, index.to(logits.device), -torch.inf)


def _without_endings(ngrams: Tensor, history: Tensor, logits: Tensor) -> Tensor:
    """Forbids the last tokens of those of (1 or R, W, N) n-grams whose others end the history."""
    before = ngrams.shape[-1] - 1
    end = history[:, history.shape[-1] - before :]
    matches = (ngrams[..., :-1] == end[:, None]).all(-1)  # (R, W)
    # N-grams that do not match point at a column behind the vocabulary: they must not allow what another forbids.
    vocabulary = logits.shape[-1]
    index = torch.where(matches, ngrams[..., -1], vocabulary)
    forbidden = logits.new_zeros((len(logits), vocabulary + 1), dtype=torch.bool).scatter(-1, index, True)
    return logits.masked_fill(forbidden[:, :vocabulary], -torch.inf)
