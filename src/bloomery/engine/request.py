"""One request from arrival to its last token, and what it took. Knows neither text nor model."""

from dataclasses import dataclass, field
from time import perf_counter

from bloomery.engine.strategy import FinishReason, Row, Strategy, Token
from bloomery.errors import BloomeryError


@dataclass(frozen=True)
class Timings:
    """Seconds on one clock. `ttft` counts from arrival to the first token, so waiting in the queue is in it."""

    queue: float
    ttft: float
    total: float


@dataclass(eq=False)
class Request:
    """A strategy and its place in the engine."""

    strategy: Strategy
    arrived: float = field(default_factory=perf_counter)
    started: float | None = None
    first_token: float | None = None
    finished: float | None = None
    slot: "Slot | None" = None

    @property
    def timings(self) -> Timings:
        end = perf_counter() if self.finished is None else self.finished
        started, first = (end if moment is None else moment for moment in (self.started, self.first_token))
        return Timings(started - self.arrived, first - self.arrived, end - self.arrived)


@dataclass
class Slot:
    """A running request's row of the block table: its blocks, how many positions are filled, what is left to run."""

    blocks: tuple[int, ...]
    length: int = 0
    pending: Row | None = None


@dataclass(frozen=True)
class Update:
    """What one step meant for one request."""

    request: Request
    tokens: tuple[Token, ...]
    finish: FinishReason | None
    error: BloomeryError | None = None
