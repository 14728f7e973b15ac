"""The tiny models are good judges: asserted on transformers alone, since a model that stands still passes anything."""

from itertools import pairwise

import pytest
from torch import Tensor

from tiny import GREEDY_STEPS, PROMPT_LENGTHS, Tiny


def best_two(checkpoint: Tiny, prompt: list[int], tokens: list[int]) -> Tensor:
    """(steps, 2): the two largest logits of each step."""
    return checkpoint.logits(prompt + tokens)[len(prompt) - 1 : -1].topk(2).values


@pytest.mark.parametrize("length", PROMPT_LENGTHS)
def test_reference_text_moves(checkpoint: Tiny, length: int) -> None:
    tokens = checkpoint.greedy(checkpoint.prompt(length))
    assert len(tokens) == GREEDY_STEPS
    assert len(set(tokens)) >= 8
    repeats = sum(one == following for one, following in pairwise(tokens))
    assert repeats <= 0.6 * (len(tokens) - 1)


@pytest.mark.parametrize("length", PROMPT_LENGTHS)
def test_reference_choices_are_clear(checkpoint: Tiny, length: int) -> None:
    prompt = checkpoint.prompt(length)
    best, second = best_two(checkpoint, prompt, checkpoint.greedy(prompt)).unbind(-1)
    assert (best - second).min() >= 1e-4
    # Twice what parity allows each logit to be off, so that equal logits within it mean equal tokens.
    assert ((best - second) > 2e-5 * best.abs().clamp(min=1)).all()
