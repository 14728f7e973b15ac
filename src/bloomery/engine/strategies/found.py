"""The texts that a search with beams has found: those that have ended, ranked. Knows no search."""

from typing import NamedTuple

from bloomery.engine.continuation import Rules
from bloomery.engine.strategies.frontier import Beam
from bloomery.engine.strategy import Said


class Ranked(NamedTuple):
    """A text that has ended. `score`: its log-probability over its length to the power of `length_penalty`."""

    beam: Beam
    score: float


class Found:
    """The best of all texts that were added, at most `size` of them, best first; among equals the earlier."""

    def __init__(self, rules: Rules, size: int) -> None:
        self.rules, self.size = rules, size
        self.ranked: list[Ranked] = []

    @property
    def full(self) -> bool:
        return len(self.ranked) == self.size

    def add(self, beam: Beam) -> None:
        score = beam.total / len(beam.text) ** self.rules.params.length_penalty
        self.ranked.append(Ranked(beam, score))
        self.ranked.sort(key=lambda ranked: -ranked.score)  # stable
        del self.ranked[self.size :]

    def may_improve(self, total: float, length: int) -> bool:
        """Whether a text of so many tokens that sums up to `total` may still rank among these: a guess where lengths
        count, as Hugging Face makes it."""
        params = self.rules.params
        if not self.full:
            return True
        reach = self.rules.most if params.early_stopping == "never" and params.length_penalty > 0 else length
        return total / reach**params.length_penalty > self.ranked[-1].score


def said(ranked: list[Ranked], count: int) -> tuple[Said, ...]:
    """The best so many of all ranked texts, which may be of several lists."""
    best = sorted(ranked, key=lambda one: -one.score)[:count]
    return tuple(
        Said(tuple(beam.text.tokens), beam.finish, choice, score, beam.text.matcher)
        for choice, (beam, score) in enumerate(best)
    )
