"""What a model gives back for a prompt: plain values. Knows nothing of how they came about."""

from dataclasses import dataclass

from bloomery.engine.continuation import Rules
from bloomery.engine.request import Timings
from bloomery.engine.strategy import FinishReason, Said, Speculation, Token


@dataclass(frozen=True)
class Completion:
    """One of the texts behind a prompt.

    `text` is without the prompt; `token_ids` hold every token, an end-of-sequence one included; `logprobs` is None
    unless they were asked for, and so is `prompt_logprobs`, of the prompt's tokens but the first; `seed` gives the same
    tokens again; `choice` is its number among those of its prompt; `score` is what these were ranked by, None where
    they were not: of beams their log-probability over their length to the power of length_penalty, with best_of the
    mean log-probability of the tokens; `speculation` says what guessing brought, None where nothing was guessed first.
    """

    prompt_ids: tuple[int, ...]
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[Token, ...] | None
    timings: Timings
    seed: int
    choice: int = 0
    score: float | None = None
    speculation: Speculation | None = None
    prompt_logprobs: tuple[Token, ...] | None = None


@dataclass(frozen=True)
class Piece:
    """A bit of a text as it appears. `completion` comes with a text's last piece; `index` is the prompt's, `choice` the
    text's among those of its prompt."""

    index: int
    choice: int
    text: str
    token_ids: tuple[int, ...]
    completion: Completion | None


@dataclass(frozen=True)
class Score:
    """Log-probabilities of the scored tokens, in natural logarithms; `greedy` says whether each was the likeliest."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    greedy: bool


def completed(rules: Rules, said: Said, tokens: list[Token], text: str, timings: Timings) -> Completion:
    """A text that has ended, given what its strategy said last, and all its tokens."""
    assert said.finish is not None
    return Completion(
        prompt_ids=tuple(rules.prompt),
        text=text,
        token_ids=tuple(token.id for token in tokens),
        finish_reason=said.finish,
        logprobs=tuple(tokens) if rules.params.logprobs is not None else None,
        timings=timings,
        seed=rules.seed,
        choice=said.choice,
        score=said.score,
        speculation=said.speculation,
        prompt_logprobs=said.prompt,
    )
