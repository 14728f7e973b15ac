"""Beam search and beam sampling: the likeliest sequences, not the likeliest token of each step.

What counts as best, and when a search ends, are those of transformers 5 (`_beam_search`), for one prompt.
Letters: K candidates, R beams, V tokens.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bloomery.engine.continuation import Continuation, Rules
from bloomery.engine.params import SamplingParams
from bloomery.engine.strategy import Decision, FinishReason, Matcher, Row, Said, Token
from bloomery.ops.draw import inverse_cdf
from bloomery.ops.random import uniform


@dataclass
class Beam:
    """A text, and the sum of its log-probabilities, as the options made them."""

    text: Continuation
    total: float = 0.0
    finish: FinishReason | None = None


class Candidate(NamedTuple):
    """A beam and a next token."""

    total: float
    parent: int
    token: Token


class Ranked(NamedTuple):
    """A text that has ended. `score`: its log-probability over its length to the power of `length_penalty`."""

    beam: Beam
    score: float


class BeamSearch:
    """The `num_return_sequences` best of `num_beams` texts.

    Of all beams' next tokens, the K likeliest sequences are candidates; with a temperature they are drawn, none twice.
    Those that end count as finished where they are among the first `num_beams`, and the likeliest `num_beams` of the
    others go on.

    Raises:
        UsageError: an option cannot be met behind this prompt.
    """

    def __init__(
        self, prompt: list[int], params: SamplingParams, eos_ids: tuple[int, ...] = (), matcher: Matcher | None = None
    ) -> None:
        ends = 0 if params.ignore_eos else len(eos_ids)
        self.rules = Rules(prompt, params, eos_ids, keep=ends + 1 if ends else 2)
        self.wide = max(2, 1 + ends) * params.num_beams  # K
        self.beams = [Beam(Continuation(self.rules, matcher))]
        self.finished: list[Ranked] = []  # best first
        self._hopeful = True  # a running beam may still become better than the worst finished one
        self._logits: dict[int, Tensor] = {}  # of each beam: the model's, (V,)
        self._totals: dict[int, Tensor] = {}  # of each beam: what every next token would sum up to, (V,)

    @property
    def seats(self) -> int:
        return self.rules.params.num_beams

    @property
    def positions(self) -> int:
        return self.rules.positions

    def rows(self) -> list[Row]:
        if not len(self.beams[0].text):
            self.rules.begin()
            return [Row(self.rules.prompt, wanted=1)]
        return [Row([beam.text.tokens[-1].id], wanted=1) for beam in self.beams]

    def accept(self, index: int, logits: Tensor | None, hidden: Tensor) -> None:
        assert logits is not None
        beam = self.beams[index]
        self._totals[index] = beam.text.process(logits[-1].log_softmax(-1)) + beam.total
        if self.rules.params.logprobs is not None:
            self._logits[index] = logits[-1].clone()

    def decide(self) -> Decision:
        stepped = [self._extended(candidate) for candidate in self._candidates()]
        ended = [beam for beam, _ in stepped[: self.seats] if beam.finish is not None]
        if self._hopeful and not (self._full and self.rules.params.early_stopping is True):
            self._rank(ended)
        going = sorted(((b, parent) for b, parent in stepped if b.finish is None), key=lambda pair: -pair[0].total)
        del going[self.seats :]
        generated = len(stepped[0][0].text)
        self.beams = [beam for beam, _ in going]
        if going and self._full and self._hopeful:
            self._hopeful = self._best_possible(generated) > self.finished[-1].score
        if not going or not self._hopeful or (self._full and self.rules.params.early_stopping is True):
            return Decision(tuple(self._said()), done=True)
        return Decision(keep=tuple(parent for _, parent in going))

    def _candidates(self) -> list[Candidate]:
        """The K best, or K drawn, in that order."""
        totals = torch.stack([self._totals[n] for n in range(len(self.beams))])  # (R, V)
        size = totals.shape[-1]
        flat = totals.flatten()
        count = min(self.wide, int((flat > -torch.inf).sum()))
        chosen = self._drawn(flat, count) if self.rules.params.temperature else flat.topk(count).indices.tolist()
        candidates = [Candidate(float(flat[n]), n // size, self._token(n // size, n % size)) for n in chosen]
        self._totals, self._logits = {}, {}
        return candidates

    def _drawn(self, flat: Tensor, count: int) -> list[int]:
        """Places of so many of (R * V,) totals, each drawn from what the ones before have left."""
        left, chosen, place = flat.clone(), list[int](), len(self.beams[0].text)
        for n in range(count):
            chosen.append(inverse_cdf(left, uniform(self.rules.seed, place, n)))
            left[chosen[-1]] = -torch.inf
        return chosen

    def _token(self, index: int, chosen: int) -> Token:
        raw = self._logits.get(index)
        return Token(chosen) if raw is None else self.beams[index].text.token(chosen, raw)

    def _extended(self, candidate: Candidate) -> tuple[Beam, int]:
        beam = Beam(self.beams[candidate.parent].text.fork(), candidate.total)
        beam.finish = beam.text.add(candidate.token)
        return beam, candidate.parent

    def _rank(self, ended: list[Beam]) -> None:
        """Keep the best of all texts that have ended; among equals the earlier stays before."""
        penalty = self.rules.params.length_penalty
        self.finished += [Ranked(beam, beam.total / len(beam.text) ** penalty) for beam in ended]
        self.finished.sort(key=lambda ranked: -ranked.score)  # stable
        del self.finished[self.seats :]

    @property
    def _full(self) -> bool:
        return len(self.finished) == self.seats

    def _best_possible(self, generated: int) -> float:
        """What the best running beam could still reach: a guess where lengths count, as Hugging Face makes it."""
        params = self.rules.params
        length = self.rules.most if params.early_stopping == "never" and params.length_penalty > 0 else generated
        return self.beams[0].total / length**params.length_penalty

    def _said(self) -> list[Said]:
        best = self.finished[: self.rules.params.num_return_sequences]
        return [
            Said(tuple(beam.text.tokens), beam.finish, choice, score, beam.text.matcher)
            for choice, (beam, score) in enumerate(best)
        ]
