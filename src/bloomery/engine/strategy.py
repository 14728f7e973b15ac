"""A strategy decides, for one request, what to run next and what the results mean. It never calls the runner.

Here: greedy and sampling, scoring, and plain forward access. A new way to generate is one more class.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from bloomery.engine.params import SamplingParams
from bloomery.engine.processors.chain import build_processors, likely_culprits
from bloomery.errors import BloomeryError
from bloomery.ops.random import fresh_seed, uniform

FinishReason = Literal["stop", "length", "error"]


class Row(NamedTuple):
    """What a strategy wants run: `ids` continue a sequence; it wants to see the last `wanted` of them."""

    ids: list[int]
    wanted: int
    head: bool = True  # False: only hidden states are wanted, so the head is not computed


class Token(NamedTuple):
    """One emitted token. `logprob` and `top` (id, log-probability) are the model's own, before any processing."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Said(NamedTuple):
    """What a step adds to one text of a request."""

    tokens: tuple[Token, ...] = ()
    finish: FinishReason | None = None
    choice: int = 0


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


class Matcher(Protocol):
    """Something that watches a request's tokens from outside the engine, which does not know what it looks for."""

    def advance(self, token_id: int) -> bool:
        """Take one more token; True ends the request."""
        ...


class Strategy(Protocol):
    """One request's way of generating, in one sequence or several."""

    @property
    def seats(self) -> int:
        """The most sequences that it will ever have at once."""
        ...

    @property
    def positions(self) -> int:
        """The most positions that one of its sequences will ever keep."""
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
        """All rows have been run."""
        ...


@dataclass
class Sampling:
    """One token after the other: the likeliest at temperature 0, else by inverse CDF of a counter-based uniform.

    Raises:
        UsageError: an option cannot be met behind this prompt.
    """

    prompt: list[int]
    params: SamplingParams
    eos_ids: tuple[int, ...] = ()
    matcher: Matcher | None = None
    generated: list[int] = field(default_factory=list)
    clock: Callable[[], float] = perf_counter  # what max_time is measured on, in seconds
    last: Token = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.seed = fresh_seed() if self.params.seed is None else self.params.seed
        self.processors = build_processors(self.params, self.prompt, self.eos_ids)
        self.most = self.params.most_new_tokens(len(self.prompt))
        self.history: Tensor | None = None  # (1, P + most), filled so far as tokens are known
        self.began: float | None = None

    @property
    def seats(self) -> int:
        return 1

    @property
    def positions(self) -> int:
        return len(self.prompt) + self.most - 1  # the last token is never run

    def rows(self) -> list[Row]:
        if self.began is None and self.params.max_time is not None:
            self.began = self.clock()
        return [Row(self.generated[-1:] or self.prompt, wanted=1)]

    def accept(self, index: int, logits: Tensor | None, hidden: Tensor) -> None:
        assert logits is not None
        raw = logits[-1]
        # A NaN is the maximum of anything.
        if not (self.params.remove_invalid_values or math.isfinite(raw.max())):
            raise BloomeryError(
                f"the model gave logits that are not finite at generated token {len(self.generated)}: "
                "try dtype float32, and 'bloomery verify' on the checkpoint"
            )
        self.last = self._token(raw, self._choose(raw))
        self.generated.append(self.last.id)

    def decide(self) -> Decision:
        finish = self._finish(self.last.id)
        return Decision((Said((self.last,), finish),), done=finish is not None)

    def _choose(self, logits: Tensor) -> int:
        if self.processors:
            logits = self._processed(logits[None])[0]
        if self.params.temperature == 0:
            return int(logits.argmax())
        return inverse_cdf(logits, uniform(self.seed, len(self.generated), 0))

    def _processed(self, logits: Tensor) -> Tensor:
        history = self._history(logits.device)
        for process in self.processors:
            logits = process(history, logits)
        if not math.isfinite(logits.max()):
            raise BloomeryError(
                f"no token is left to choose at generated token {len(self.generated)}: try it without "
                f"{likely_culprits(self.params) or 'the options that change logits'}"
            )
        return logits

    def _history(self, device: torch.device) -> Tensor:
        """Ids so far: (1, T). Grown in place, since a new tensor a token would cost the square of the length."""
        length = len(self.prompt) + len(self.generated)
        if self.history is None:
            self.history = torch.empty((1, len(self.prompt) + self.most), dtype=torch.long, device=device)
            self.history[0, :length] = torch.tensor(self.prompt + self.generated, device=device)
        elif self.generated:
            self.history[0, length - 1] = self.generated[-1]
        return self.history[:, :length]

    def _token(self, raw: Tensor, chosen: int) -> Token:
        if self.params.logprobs is None:
            return Token(chosen)
        logprobs = raw.log_softmax(-1)
        values, ids = logprobs.topk(min(self.params.logprobs, len(logprobs)))
        return Token(chosen, float(logprobs[chosen]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))

    def _finish(self, chosen: int) -> FinishReason | None:
        # The matcher sees every token, the last one too: it also keeps the text.
        matched = self.matcher is not None and self.matcher.advance(chosen)
        if matched or (chosen in self.eos_ids and not self.params.ignore_eos):
            return "stop"
        return "length" if len(self.generated) == self.most or self._out_of_time() else None

    def _out_of_time(self) -> bool:
        if self.params.max_time is None or self.began is None:
            return False
        return self.clock() - self.began > self.params.max_time


def inverse_cdf(logits: Tensor, u: float) -> int:
    """The first token, in the order of ids, at which the cumulative probability exceeds u. (V,) -> id.

    In float64, so that a vocabulary of 250,000 does not lose its tail to rounding.
    """
    cdf = logits.double().softmax(-1).cumsum(-1)
    return int(torch.searchsorted(cdf, u * cdf[-1], right=True))


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

    def rows(self) -> list[Row]:
        return [Row(self.ids, wanted=len(self.ids), head=self.head)]

    def accept(self, index: int, logits: Tensor | None, hidden: Tensor) -> None:
        self.collected.append((hidden if logits is None else logits).clone())

    def decide(self) -> Decision:
        return ENDED
