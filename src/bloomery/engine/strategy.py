"""A strategy decides, for one request, what to run next and what the results mean. It never calls the runner.

A way to generate is one class of `engine/strategies`.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, Self

from torch import Tensor

FinishReason = Literal["stop", "length", "error"]


class Row(NamedTuple):
    """What a strategy wants run: `ids` continue a sequence; it wants to see the last `wanted` of them."""

    ids: list[int]
    wanted: int
    head: bool = True  # False: only hidden states are wanted, so the head is not computed
    model: int = 0  # which model runs it, the same for all rows of a sequence; 1 is the draft


class Token(NamedTuple):
    """One emitted token. `logprob` and `top` (id, log-probability) are the model's own, before any processing."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Speculation:
    """What guessing brought to a text: tokens that were `proposed` and `accepted`, and how often the model ran."""

    proposed: int
    accepted: int
    steps: int


class Matcher(Protocol):
    """Something that watches a text's tokens from outside the engine, which does not know what it looks for."""

    def allowed(self) -> Tensor | None:
        """The tokens that may come next, (V,) bool, None where all may.

        Raises:
            BloomeryError: that cannot be said.
        """
        ...

    def advance(self, token_id: int) -> bool:
        """Take one more token; True ends the text."""
        ...

    def fork(self) -> Self:
        """One that goes on from here on its own."""
        ...


class Said(NamedTuple):
    """What a step adds to one text of a request. `score` is what texts were ranked by, where they were; `matcher` the
    one that has watched this text; with the end of a text come `speculation`, where its tokens were guessed first, and
    `prompt`, the prompt's tokens but the first, where they were to be reported."""

    tokens: tuple[Token, ...] = ()
    finish: FinishReason | None = None
    choice: int = 0
    score: float | None = None
    matcher: Matcher | None = None
    speculation: Speculation | None = None
    prompt: tuple[Token, ...] | None = None


class Decision(NamedTuple):
    """What a strategy makes of the results it was given.

    `said` for the texts; `done`: the request has ended. `back`: positions that each sequence takes back, as if they had
    not been run. `keep`: the parents of the sequences from now on, None where all go on as they are: (0, 0, 2) is two
    that go on from sequence 0 and one from 2, and the end of 1.
    """

    said: tuple[Said, ...] = ()
    done: bool = False
    back: tuple[int, ...] = ()
    keep: tuple[int, ...] | None = None


ENDED = Decision((Said(finish="stop"),), done=True)
"""Of a strategy that wants nothing more."""


class Strategy(Protocol):
    """One request's way of generating, in one sequence or several."""

    @property
    def seats(self) -> int:
        """The most sequences of one model that it will ever have at once."""
        ...

    @property
    def positions(self) -> int:
        """The most positions that one of its sequences will ever keep."""
        ...

    def begin(self) -> None:
        """The first of its rows runs now; until then it has waited."""
        ...

    def rows(self) -> list[Row]:
        """What to run next, one row for each of its sequences; the first time they say how many there are. A row
        without ids runs nothing. Asked once; the scheduler may run them in pieces."""
        ...

    def accept(self, index: int, logits: Tensor | None, hidden: Tensor) -> None:
        """Wanted positions of a sequence's row, in order, perhaps in several calls: (W, V) fp32 and (W, E). What is
        needed of them is taken now: they are gone afterwards."""
        ...

    def decide(self) -> Decision:
        """All rows have been run.

        Raises:
            BloomeryError: the request cannot go on.
        """
        ...
