"""Log-probabilities of the prompt around any way to generate: what the run that the prompt has anyway says of it.

Knows neither how tokens are chosen nor how many texts there are.
"""

from torch import Tensor

from bloomery.engine.continuation import Generating, Rules, reported
from bloomery.engine.strategy import Decision, Row, Token


class PromptScores:
    """What `inner` does, and in what it says of a text that has ended, the prompt's tokens but the first.

    All positions of the inner strategy's first row are wanted; it sees those of them that it wanted itself.

    Args:
        inner: a strategy whose first row begins with the prompt's tokens.
        count: how many of the likeliest tokens are reported at each place.
    """

    def __init__(self, inner: Generating, count: int) -> None:
        self.inner, self.count = inner, count
        self.scored: list[Token] = []
        self._first: Row | None = None  # as the inner strategy wants it, while it runs
        self._begun = False
        self._seen = 0  # positions of it

    @property
    def rules(self) -> Rules:
        return self.inner.rules

    @property
    def seats(self) -> int:
        return self.inner.seats

    @property
    def positions(self) -> int:
        return self.inner.positions

    def begin(self) -> None:
        self.inner.begin()

    def rows(self) -> list[Row]:
        rows = self.inner.rows()
        if self._begun:
            return rows
        self._begun, self._first = True, rows[0]
        return [rows[0]._replace(wanted=len(rows[0].ids), head=True), *rows[1:]]

    def accept(self, index: int, logits: Tensor | None, hidden: Tensor) -> None:
        first = self._first
        if index or first is None:
            self.inner.accept(index, logits, hidden)
            return
        assert logits is not None
        begin, self._seen = self._seen, self._seen + len(logits)
        follow = self.rules.prompt[begin + 1 : self._seen + 1]
        if follow:
            self.rules.check_numbers(logits[: len(follow)], "at a token of the prompt")
        self.scored += reported(follow, logits[: len(follow)], self.count)
        unasked = max(0, len(first.ids) - first.wanted - begin)
        if unasked < len(logits):
            self.inner.accept(index, logits[unasked:] if first.head else None, hidden[unasked:])

    def decide(self) -> Decision:
        self._first = None
        decision = self.inner.decide()
        said = [one if one.finish is None else one._replace(prompt=tuple(self.scored)) for one in decision.said]
        return decision._replace(said=tuple(said))
