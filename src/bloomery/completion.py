"""What a model gives back for a prompt: plain values. Knows nothing of how they came about."""

from dataclasses import dataclass

from bloomery.engine.request import Timings
from bloomery.engine.strategy import FinishReason, Token


@dataclass(frozen=True)
class Completion:
    """What became of one prompt.

    `text` is without the prompt; `token_ids` hold every token, an end-of-sequence one included; `logprobs` is None
    unless they were asked for; `seed` gives the same tokens again.
    """

    prompt_ids: tuple[int, ...]
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[Token, ...] | None
    timings: Timings
    seed: int


@dataclass(frozen=True)
class Piece:
    """A bit of a text as it appears. `completion` comes with a prompt's last piece; `index` is the prompt's."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    completion: Completion | None


@dataclass(frozen=True)
class Score:
    """Log-probabilities of the scored tokens, in natural logarithms; `greedy` says whether each was the likeliest."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    greedy: bool
