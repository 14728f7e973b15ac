"""Guidance around any way to generate: beside each of its sequences another, behind another prompt, with its text.

Knows neither how tokens are chosen nor what becomes of the texts: that is asked of the strategy inside.
"""

from torch import Tensor

from bloomery.engine.continuation import Generating, Rules
from bloomery.engine.processors.guidance import Guidance
from bloomery.engine.strategy import Decision, Row


class Guided:
    """What `inner` does, with logits that lead away from those behind `against`.

    Of 2 R sequences the first R are the inner strategy's, and R + n is the shadow of n. Guidance is the first of all
    processors, as in Hugging Face's chain.

    Args:
        inner: a strategy whose rows want one position each.
        against: ids of the other prompt, at least one.
        scale: of `processors/guidance`.
    """

    def __init__(self, inner: Generating, against: list[int], scale: float) -> None:
        self.inner, self.against = inner, against
        self.guidance = Guidance(scale, len(inner.rules.prompt))
        inner.rules.processors.insert(0, self.guidance)
        self._count = 0  # R of this step; none before the first
        self._texts: list[tuple[int, ...]] = []  # of each of R sequences, what it has run behind the prompt
        self._waiting: dict[int, tuple[Tensor, Tensor]] = {}  # whose other half has not come: logits and hidden states

    @property
    def rules(self) -> Rules:
        return self.inner.rules

    @property
    def seats(self) -> int:
        return 2 * self.inner.seats

    @property
    def positions(self) -> int:
        return self.inner.positions + max(0, len(self.against) - len(self.rules.prompt))

    def begin(self) -> None:
        self.inner.begin()

    def rows(self) -> list[Row]:
        rows = self.inner.rows()
        if self._count:
            shadows = rows
            self._texts = [(*text, *row.ids) for text, row in zip(self._texts, rows, strict=True)]
        else:
            shadows, self._texts = [row._replace(ids=self.against) for row in rows], [()] * len(rows)
        self._count = len(rows)
        return [*rows, *shadows]

    def accept(self, index: int, logits: Tensor | None, hidden: Tensor) -> None:
        assert logits is not None
        other = (index + self._count) % (2 * self._count)
        if other not in self._waiting:
            self._waiting[index] = logits.clone(), hidden.clone()
            return
        halves = {index: (logits, hidden), other: self._waiting.pop(other)}
        mine = min(halves)
        shadow, _ = halves[mine + self._count]
        self.rules.check_numbers(shadow, "behind the negative prompt")
        self.guidance.against[self._texts[mine]] = shadow[-1].clone()
        self.inner.accept(mine, *halves[mine])

    def decide(self) -> Decision:
        decision = self.inner.decide()
        self.guidance.against.clear()
        keep = decision.keep
        if keep is not None:
            self._texts = [self._texts[parent] for parent in keep]
        return decision._replace(
            back=decision.back * 2,
            keep=None if keep is None else (*keep, *(self._count + parent for parent in keep)),
        )
