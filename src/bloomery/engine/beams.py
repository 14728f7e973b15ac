"""Beam search: keeps the likeliest sequences, not the likeliest token of each step. Knows no runner and no text.

What counts as best, and when a search ends, are those of Hugging Face's `_beam_search` (transformers 5), for one prompt.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bloomery.engine.params import SamplingParams
from bloomery.engine.processors import build_processors
from bloomery.engine.strategy import Decision, FinishReason, Row, Said, Token


class Beam(NamedTuple):
    """A sequence so far: what was generated, and the sum of its log-probabilities."""

    tokens: tuple[int, ...] = ()
    score: float = 0.0


class Hypothesis(NamedTuple):
    """A sequence that has ended. `score`: its log-probability over its length to the power of `length_penalty`."""

    tokens: tuple[int, ...]
    score: float
    finish: FinishReason


class _Candidate(NamedTuple):
    score: float
    parent: int
    token: int


@dataclass
class BeamSearch:
    """The `num_return_sequences` best of `num_beams` sequences.

    A candidate is a beam and a next token. Of the best candidates, those that end count as finished where they are among
    the first `num_beams`, and the first `num_beams` of the others go on.
    """

    prompt: list[int]
    params: SamplingParams
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.processors = build_processors(self.params, self.eos_ids)
        self.beams = [Beam()]
        self.finished: list[Hypothesis] = []  # best first
        self._hopeful = True  # a running beam may still become better than the worst finished one
        self._candidates: list[_Candidate] = []

    @property
    def seats(self) -> int:
        return self.params.num_beams

    @property
    def positions(self) -> int:
        return len(self.prompt) + self.params.max_new_tokens - 1

    def rows(self) -> list[Row]:
        return [Row([beam.tokens[-1]] if beam.tokens else self.prompt, wanted=1) for beam in self.beams]

    def accept(self, index: int, logits: Tensor | None, hidden: Tensor) -> None:
        assert logits is not None
        beam = self.beams[index]
        logprobs = logits[-1].log_softmax(-1)
        for process in self.processors:
            logprobs = process(logprobs, len(beam.tokens))
        # Enough of each beam that the best of all are among them.
        totals = (logprobs + beam.score).topk(min(self._wide, len(logprobs)))
        pairs = zip(totals.values.tolist(), totals.indices.tolist(), strict=True)
        self._candidates += [_Candidate(score, index, token) for score, token in pairs if score > -torch.inf]

    def decide(self) -> Decision:
        best = sorted(self._candidates, key=lambda candidate: -candidate.score)[: self._wide]
        self._candidates = []
        generated = len(self.beams[0].tokens) + 1
        last = generated == self.params.max_new_tokens
        ends = [last or self._is_end(candidate.token) for candidate in best]
        for candidate, end in list(zip(best, ends, strict=True))[: self.params.num_beams]:
            if end:
                self._finish(candidate, generated)
        going = [candidate for candidate, end in zip(best, ends, strict=True) if not end][: self.params.num_beams]
        self.beams = [Beam((*self.beams[c.parent].tokens, c.token), c.score) for c in going]
        full = len(self.finished) == self.params.num_beams
        if going and full and self._hopeful:
            self._hopeful = self._best_possible(generated) > self.finished[-1].score
        if not going or (full and self.params.early_stopping is True) or not self._hopeful:
            return Decision(tuple(self._said()), done=True)
        return Decision(keep=tuple(candidate.parent for candidate in going))

    def _finish(self, candidate: _Candidate, generated: int) -> None:
        """Keep a sequence that has ended, where it is among the best; among equals the earlier stays before."""
        full = len(self.finished) == self.params.num_beams
        if not self._hopeful or (full and self.params.early_stopping is True):
            return
        tokens = (*self.beams[candidate.parent].tokens, candidate.token)
        score = candidate.score / generated**self.params.length_penalty
        self.finished.append(Hypothesis(tokens, score, "stop" if self._is_end(candidate.token) else "length"))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)  # stable
        del self.finished[self.params.num_beams :]

    def _best_possible(self, generated: int) -> float:
        """What the best running beam could still reach: a guess where lengths count, as Hugging Face makes it."""
        longest = self.params.early_stopping == "never" and self.params.length_penalty > 0
        length = self.params.max_new_tokens if longest else generated
        return self.beams[0].score / length**self.params.length_penalty

    def _said(self) -> list[Said]:
        best = self.finished[: self.params.num_return_sequences]
        return [
            Said(tuple(Token(token) for token in hypothesis.tokens), hypothesis.finish, choice)
            for choice, hypothesis in enumerate(best)
        ]

    def _is_end(self, token: int) -> bool:
        return token in self.eos_ids and not self.params.ignore_eos

    @property
    def _wide(self) -> int:
        ends = 0 if self.params.ignore_eos else len(self.eos_ids)
        return max(2, 1 + ends) * self.params.num_beams
