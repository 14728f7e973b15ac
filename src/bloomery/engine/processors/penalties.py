"""Processors that make tokens more or less likely by what has been said. They know no request."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bloomery.engine.processors.signature import Processor

CERTAIN = 1e30
"""A logit that no other reaches, and that may still be divided by a temperature."""


def repetition(penalty: float) -> Processor:
    """Every token of the history: a positive logit divided by `penalty`, a negative one multiplied (Keskar et al.)."""

    def process(history: Tensor, logits: Tensor) -> Tensor:
        return logits.scatter(-1, history, _weaker(logits.gather(-1, history), penalty))

    return process


def encoder_repetition(penalty: float, prompt: Tensor) -> Processor:
    """Every token of the prompt (P,), by the inverse of `penalty`: above 1 makes them likelier."""

    def process(_: Tensor, logits: Tensor) -> Tensor:
        index = prompt.to(logits.device).expand(len(logits), -1)
        return logits.scatter(-1, index, _weaker(logits.gather(-1, index), 1 / penalty))

    return process


def frequency(penalty: float, prompt: int) -> Processor:
    """OpenAI's: less `penalty` times how often a token stands behind the prompt's first `prompt` tokens."""
    return lambda history, logits: logits - penalty * _counts(history[:, prompt:], logits)


def presence(penalty: float, prompt: int) -> Processor:
    """OpenAI's: less `penalty` where a token stands behind the prompt's first `prompt` tokens at all."""
    return lambda history, logits: logits - penalty * (_counts(history[:, prompt:], logits) > 0)


def diversity(penalty: float, taken: Sequence[int]) -> Processor:
    """Less `penalty` times how often a token stands in `taken`, as it is whenever this runs: what the groups before
    have taken in this step (Vijayakumar et al. 2018, Hamming diversity)."""

    def process(_: Tensor, logits: Tensor) -> Tensor:
        if not taken:
            return logits
        return logits - penalty * _counts(torch.tensor([list(taken)], device=logits.device), logits[:1])

    return process


def decaying_length(start: int, factor: float, prompt: int, eos_ids: Sequence[int]) -> Processor:
    """After `start` new tokens the ends of a text gain |logit| (factor ** steps - 1), except what is forbidden.

    remove_invalid_values makes a forbidden end the least finite number, whose size Hugging Face adds to it, so that it
    becomes certain.
    """
    index = torch.tensor(eos_ids)

    def process(history: Tensor, logits: Tensor) -> Tensor:
        steps = history.shape[-1] - prompt - start
        if steps <= 0:
            return logits
        ends = logits[:, index.to(logits.device)]
        forbidden = ~ends.isfinite() | (ends == torch.finfo(ends.dtype).min)
        gain = (ends.abs() * (_power(factor, steps) - 1)).masked_fill(forbidden, 0)
        return logits.index_copy(-1, index.to(logits.device), (ends + gain).clamp(max=CERTAIN))

    return process


def sequence_bias(biases: Sequence[tuple[tuple[int, ...], float]]) -> Processor:
    """Adds a bias to a sequence's last token where its other tokens end the history; minus infinity forbids it.

    Sequences of one length are compared with the history's end at once.
    """
    groups: list[tuple[Tensor, Tensor, Tensor]] = []  # (S, length - 1) ids before the last, (S,) last ids, (S,) biases
    for length in sorted({len(ids) for ids, _ in biases}):
        members = [(ids, bias) for ids, bias in biases if len(ids) == length]
        before = torch.tensor([ids[:-1] for ids, _ in members], dtype=torch.long)
        groups.append((before, torch.tensor([ids[-1] for ids, _ in members]), torch.tensor([b for _, b in members])))

    def process(history: Tensor, logits: Tensor) -> Tensor:
        added = torch.zeros_like(logits)
        for before, last, amount in (tuple(part.to(logits.device) for part in group) for group in groups):
            length = before.shape[-1]
            if length <= history.shape[-1]:
                end = history[:, history.shape[-1] - length :]
                matches = (end[:, None] == before).all(-1)  # (R, S)
                added.index_add_(-1, last, torch.where(matches, amount, 0.0))
        return logits + added

    return process


def _weaker(logits: Tensor, penalty: float) -> Tensor:
    return torch.where(logits < 0, logits * penalty, logits / penalty)


def _counts(ids: Tensor, logits: Tensor) -> Tensor:
    """How often each token stands in (R, T) ids: (R, V)."""
    return torch.zeros_like(logits).scatter_add(-1, ids, torch.ones_like(ids, dtype=logits.dtype))


def _power(factor: float, steps: int) -> float:
    try:
        return factor**steps
    except OverflowError:
        return CERTAIN
