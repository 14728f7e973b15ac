"""Requests as whoever waits for them sees them: when each token came, and that all of them did. Knows no engine.

Tokens are counted where they arrive. An engine's own counters are not asked: they are what a benchmark is to check.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Protocol

from bloomery.completion import Completion, Piece
from bloomery.engine.params import SamplingParams
from bloomery.errors import BloomeryError


class Speaks(Protocol):
    """Any LLM."""

    def stream(self, prompts: Sequence[list[int]], params: SamplingParams) -> Iterable[Piece]: ...


@dataclass(frozen=True)
class Arrival:
    """When something of a text came, in seconds from the beginning, and how many tokens it was."""

    at: float
    tokens: int


@dataclass(frozen=True)
class Round:
    """Requests that were asked for at one moment: the arrivals of each text, and all seconds to the last."""

    texts: tuple[tuple[Arrival, ...], ...]
    completions: tuple[Completion, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        """All that came."""
        return sum(arrival.tokens for text in self.texts for arrival in text)

    @property
    def first_tokens(self) -> list[float]:
        """Seconds to the first of each text."""
        return [text[0].at for text in self.texts]

    @property
    def gaps(self) -> list[float]:
        """Seconds for each later token: those between two arrivals, over the tokens of the second."""
        return [(after.at - before.at) / after.tokens for text in self.texts for before, after in pairwise(text)]


def watched(
    llm: Speaks, prompts: Sequence[list[int]], params: SamplingParams, clock: Callable[[], float] = perf_counter
) -> Round:
    """Ask for a text behind each prompt, all at once, and note what comes.

    Raises:
        BloomeryError: a text is shorter or longer than was asked for, or its pieces are not what it is made of:
            whatever was measured then is of something else.
    """
    texts: list[list[Arrival]] = [[] for _ in prompts]
    ids: list[list[int]] = [[] for _ in prompts]
    done: list[Completion | None] = [None] * len(prompts)
    began = clock()
    for piece in llm.stream(prompts, params):
        now = clock() - began
        if piece.token_ids:
            texts[piece.index].append(Arrival(now, len(piece.token_ids)))
        ids[piece.index] += piece.token_ids
        done[piece.index] = piece.completion or done[piece.index]
    seconds = clock() - began
    for index, one in enumerate(done):
        if one is not None and len(texts[index]) == 1 < texts[index][0].tokens:
            # An engine that gives a text in one piece says itself when its first token was there.
            whole = texts[index][0]
            texts[index] = [Arrival(one.timings.ttft, 1), Arrival(whole.at, whole.tokens - 1)]
    for index, (prompt, tokens, completion) in enumerate(zip(prompts, ids, done, strict=True)):
        _check(f"text {index + 1} of {len(prompts)}", prompt, tokens, completion, params)
    return Round(tuple(map(tuple, texts)), tuple(one for one in done if one is not None), seconds)


def _check(
    name: str, prompt: list[int], tokens: list[int], completion: Completion | None, params: SamplingParams
) -> None:
    if completion is None:
        raise BloomeryError(f"{name} never ended")
    if list(completion.prompt_ids) != prompt or list(completion.token_ids) != tokens:
        raise BloomeryError(f"{name} is not made of the pieces that came, or stands behind another prompt")
    wanted = params.most_new_tokens(len(prompt))
    if len(tokens) != wanted:
        raise BloomeryError(f"{name} has {len(tokens)} tokens, and {wanted} were to be measured")
