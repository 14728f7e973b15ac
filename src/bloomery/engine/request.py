"""One request from arrival to its last token, and what it took. Knows neither text nor model."""

from dataclasses import dataclass, field
from time import perf_counter

from bloomery.engine.strategy import Row, Said, Strategy
from bloomery.errors import BloomeryError


@dataclass(frozen=True)
class Timings:
    """Seconds on one clock. `ttft` counts from arrival to the first token, so waiting in the queue is in it."""

    queue: float
    ttft: float
    total: float


@dataclass(eq=False)
class Slot:
    """A row of the block table: one sequence of a request, the blocks that keep it, and what is left to run of it."""

    ids: list[int] = field(default_factory=list)
    """Tokens that have been run, all of which the blocks keep."""
    length: int = 0
    """Positions that are filled: those of the tokens, and of what stands before them."""
    blocks: list[int] = field(default_factory=list)
    wished: list[int] = field(default_factory=list)
    pending: Row | None = None
    opening: bool = True
    """The row it begins with has not been run to its end: a prompt, or all of a text that gave way."""
    model: int = 0
    """Which model runs it, and whose blocks these are."""


@dataclass(eq=False)
class Request:
    """A strategy, and the slots of its sequences while it runs."""

    strategy: Strategy
    arrived: float = field(default_factory=perf_counter)
    started: float | None = None
    first_token: float | None = None
    finished: float | None = None
    slots: list[Slot] = field(default_factory=list)
    turn: int = 0
    """The last step that it was part of."""
    decided: bool = False
    """What it begins with, a prompt mostly, has been run."""

    @property
    def timings(self) -> Timings:
        end = perf_counter() if self.finished is None else self.finished
        started, first = (end if moment is None else moment for moment in (self.started, self.first_token))
        return Timings(started - self.arrived, first - self.arrived, end - self.arrived)


@dataclass(frozen=True)
class Update:
    """What one step meant for one text of a request, or the error that ended it."""

    request: Request
    said: Said
    error: BloomeryError | None = None
