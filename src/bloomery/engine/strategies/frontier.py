"""The beams of a search that go on: what is run of them, what the model gives for them, which tokens could come next.

Knows no search: not which of the candidates go on, nor when a text counts as found. Letters: K candidates, R beams, V
tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bloomery.engine.continuation import Continuation, NoTokenLeft, Rules
from bloomery.engine.strategy import FinishReason, Matcher, Row


@dataclass
class Beam:
    """A text, the sum of its log-probabilities as the options made them, and the sequence that it goes on from."""

    text: Continuation
    total: float = 0.0
    parent: int = 0
    finish: FinishReason | None = None


class Candidate(NamedTuple):
    """A beam and a next token."""

    total: float
    parent: int
    token: int


class Frontier:
    """All beams of a request, one for each of its sequences; at first the prompt alone."""

    def __init__(self, rules: Rules, matcher: Matcher | None) -> None:
        self.rules = rules
        self.beams = [Beam(Continuation(rules, matcher))]
        self._logits: dict[int, Tensor] = {}  # of each beam: the model's, (V,)

    @property
    def length(self) -> int:
        """Tokens of each text."""
        return len(self.beams[0].text)

    def rows(self) -> list[Row]:
        if not self.length:
            return [Row(self.rules.prompt, wanted=1)]
        return [Row([beam.text.tokens[-1].id], wanted=1) for beam in self.beams]

    def accept(self, index: int, logits: Tensor | None) -> None:
        assert logits is not None
        self._logits[index] = logits[-1].clone()

    def totals(self, indices: Sequence[int]) -> Tensor:
        """What every next token of these beams would sum up to: (R, V). Minus infinity behind one that no token may
        follow: the others go on.

        Raises:
            NoTokenLeft: that is so of all of them.
            BloomeryError: the model gave what is no number.
        """
        rows, dead = list[Tensor](), list[NoTokenLeft]()
        for index in indices:
            logprobs = self._logits[index].log_softmax(-1)
            try:
                rows.append(self.beams[index].text.process(logprobs) + self.beams[index].total)
            except NoTokenLeft as error:
                dead.append(error)
                rows.append(torch.full_like(logprobs, -torch.inf))
        if len(dead) == len(rows):
            raise dead[0]
        return torch.stack(rows)

    def extended(self, candidate: Candidate) -> Beam:
        """The text with its next token, and whether it ends with it."""
        text = self.beams[candidate.parent].text.fork()
        token = text.token(candidate.token, self._logits[candidate.parent])
        return Beam(text, candidate.total, candidate.parent, text.add(token))

    def go_on(self, beams: list[Beam]) -> tuple[int, ...]:
        """These are the beams from now on: their parents."""
        self.beams, self._logits = beams, {}
        return tuple(beam.parent for beam in beams)


class Search:
    """What every search with beams is as a `Strategy`, but for what it decides."""

    def __init__(self, rules: Rules, matcher: Matcher | None) -> None:
        self.rules = rules
        self.frontier = Frontier(rules, matcher)

    @property
    def seats(self) -> int:
        return self.rules.params.num_beams

    @property
    def positions(self) -> int:
        return self.rules.positions

    def begin(self) -> None:
        self.rules.begin()

    def rows(self) -> list[Row]:
        return self.frontier.rows()

    def accept(self, index: int, logits: Tensor | None, hidden: Tensor) -> None:
        self.frontier.accept(index, logits)


def likeliest(totals: Tensor, indices: Sequence[int], most: int) -> list[Candidate]:
    """The best of (R, V) totals of these beams, at most so many, best first."""
    count = min(most, int((totals > -torch.inf).sum()))
    return picked(totals, indices, totals.flatten().topk(count).indices.tolist())


def picked(totals: Tensor, indices: Sequence[int], places: list[int]) -> list[Candidate]:
    """The candidates at these places of flat (R * V,) totals."""
    values, size = totals.flatten()[places].tolist(), totals.shape[-1]
    return [Candidate(v, indices[p // size], p % size) for v, p in zip(values, places, strict=True)]


def wide(rules: Rules) -> int:
    """Candidates for each beam, so that one is left for it although every end of sequence is among them."""
    return max(2, 1 + len(rules.ends))
