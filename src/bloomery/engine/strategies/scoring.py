"""Scoring of given tokens, and plain access to logits and hidden states. Choose nothing."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bloomery.engine.strategy import ENDED, Decision, Row


@dataclass
class Scoring:
    """Log-probabilities of given tokens: the last `scored` of `ids`, each given all that stand before it."""

    ids: list[int]
    scored: int
    logprobs: list[float] = field(default_factory=list)
    greedy: bool = True  # whether every scored token was the likeliest

    @property
    def seats(self) -> int:
        return 1

    @property
    def positions(self) -> int:
        return len(self.ids) - 1

    def begin(self) -> None:
        pass

    def rows(self) -> list[Row]:
        return [Row(self.ids[:-1], wanted=self.scored)]

    def accept(self, index: int, logits: Tensor | None, hidden: Tensor) -> None:
        assert logits is not None
        first = len(self.ids) - self.scored + len(self.logprobs)
        targets = torch.tensor(self.ids[first : first + len(logits)], device=logits.device)
        self.logprobs += logits.log_softmax(-1).gather(-1, targets[:, None]).flatten().tolist()
        self.greedy = self.greedy and bool((logits.argmax(-1) == targets).all())

    def decide(self) -> Decision:
        return ENDED


@dataclass
class Forward:
    """Logits (head) or hidden states (no head) of every position, collected."""

    ids: list[int]
    head: bool
    collected: list[Tensor] = field(default_factory=list)

    @property
    def seats(self) -> int:
        return 1

    @property
    def positions(self) -> int:
        return len(self.ids)

    def begin(self) -> None:
        pass

    def rows(self) -> list[Row]:
        return [Row(self.ids, wanted=len(self.ids), head=self.head)]

    def accept(self, index: int, logits: Tensor | None, hidden: Tensor) -> None:
        self.collected.append((hidden if logits is None else logits).clone())

    def decide(self) -> Decision:
        return ENDED
