"""One text as it grows: what its options make of logits, and when it has ended. Chooses no token, runs none.

Every way to generate goes through here, so an option means the same in all of them.
"""

import math
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from bloomery.engine.params import SamplingParams
from bloomery.engine.processors.chain import build_processors, likely_culprits
from bloomery.engine.strategy import FinishReason, Matcher, Strategy, Token
from bloomery.errors import BloomeryError
from bloomery.ops.largest import largest
from bloomery.ops.random import fresh_seed


class NoTokenLeft(BloomeryError):
    """The options leave a text no token to go on with."""


class Rules:
    """What the texts of one request have in common.

    Args:
        prompt: ids, at least one.
        params: of the request.
        eos_ids: tokens that end a text.
        keep: tokens that top_k and its like always leave.
        clock: what max_time is measured on, in seconds.

    Raises:
        UsageError: an option cannot be met behind this prompt.
    """

    def __init__(
        self,
        prompt: list[int],
        params: SamplingParams,
        eos_ids: tuple[int, ...] = (),
        *,
        keep: int = 1,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.prompt, self.params = prompt, params
        self.seed = fresh_seed() if params.seed is None else params.seed
        self.taken: list[int] = []
        """Tokens that other groups of beams have taken in this step; whoever has groups says so."""
        self.processors = build_processors(params, prompt, eos_ids, keep=keep, taken=self.taken)
        self.ends = () if params.ignore_eos else eos_ids
        self.most = params.most_new_tokens(len(prompt))
        self._clock, self._began = clock, 0.0

    @property
    def positions(self) -> int:
        """Most positions of a text's sequence: its last token is never run."""
        return len(self.prompt) + self.most - 1

    def begin(self) -> None:
        """The request runs from now on."""
        self._began = self._clock()

    def out_of_time(self) -> bool:
        limit = self.params.max_time
        return limit is not None and self._clock() - self._began > limit

    def check_numbers(self, logits: Tensor, where: str) -> None:
        """Raises BloomeryError where a model gave what is no number, unless that is to be gone on from."""
        # A NaN is the maximum of anything.
        if not (self.params.remove_invalid_values or math.isfinite(largest(logits)[0])):
            raise BloomeryError(
                f"the model gave logits that are not finite {where}: "
                "try dtype float32, and 'bloomery verify' on the checkpoint"
            )


class Generating(Strategy, Protocol):
    """A strategy that makes texts."""

    @property
    def rules(self) -> Rules: ...


class Continuation:
    """A text behind a request's prompt."""

    def __init__(self, rules: Rules, matcher: Matcher | None = None) -> None:
        self.rules, self.matcher = rules, matcher
        self.tokens: list[Token] = []
        self._history: Tensor | None = None  # (1, P + most), of which the first `_known` are filled
        self._known = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def fork(self) -> "Continuation":
        """Another text that has the same tokens so far."""
        other = Continuation(self.rules, None if self.matcher is None else self.matcher.fork())
        other.tokens = list(self.tokens)
        other._history, other._known = None if self._history is None else self._history.clone(), self._known
        return other

    def process(self, logits: Tensor) -> Tensor:
        """Logits of the next token as the options make them: (V,) fp32 -> (V,).

        Raises:
            NoTokenLeft: the options leave none.
            BloomeryError: the model gave what is no number.
        """
        self.rules.check_numbers(logits, f"at generated token {len(self)}")
        allowed = None if self.matcher is None else self.matcher.allowed()
        if not self.rules.processors and allowed is None:
            return logits
        forbidden = None if allowed is None else ~allowed.to(logits.device)
        rows = _without(forbidden, logits[None])  # first: the likeliest k are those of the allowed ones
        if self.rules.processors:
            history = self._ids(logits.device)
            for process in self.rules.processors:
                rows = process(history, rows)
            rows = _without(forbidden, rows)  # last: what replaces infinities would allow all again
        if not math.isfinite(largest(rows)[0]):
            raise NoTokenLeft(
                f"no token is left to choose at generated token {len(self)}: try it without "
                f"{likely_culprits(self.rules.params) or 'the options that change logits'}"
            )
        return rows[0]

    def token(self, chosen: int, raw: Tensor) -> Token:
        """A token with what is to be reported of it, given the model's logits (V,) for its place."""
        count = self.rules.params.logprobs
        return Token(chosen) if count is None else reported([chosen], raw[None], count)[0]

    def add(self, token: Token) -> FinishReason | None:
        """Take one more token; says whether the text ends with it."""
        self.tokens.append(token)
        # The matcher sees every token, the last one too: it also keeps the text.
        matched = self.matcher is not None and self.matcher.advance(token.id)
        if matched or token.id in self.rules.ends:
            return "stop"
        return "length" if len(self) == self.rules.most or self.rules.out_of_time() else None

    def _ids(self, device: torch.device) -> Tensor:
        """Prompt and text so far, (1, T). Grown in place: a new tensor a token would cost the square of the length."""
        length = len(self.rules.prompt) + len(self)
        if self._history is None:
            self._history = torch.empty((1, len(self.rules.prompt) + self.rules.most), dtype=torch.long, device=device)
        if self._known < length:
            unknown = [token.id for token in self.tokens[max(0, self._known - len(self.rules.prompt)) :]]
            ids = unknown if self._known else self.rules.prompt + unknown
            self._history[0, self._known : length] = torch.tensor(ids, device=device)
            self._known = length
        return self._history[:, :length]


def _without(forbidden: Tensor | None, logits: Tensor) -> Tensor:
    """(R, V) logits without those of tokens that are forbidden, (V,) bool."""
    return logits if forbidden is None else logits.masked_fill(forbidden, -torch.inf)


def reported(chosen: list[int], raw: Tensor, count: int) -> list[Token]:
    """W tokens, each with its log-probability among the model's logits (W, V), and the `count` likeliest."""
    logprobs = raw.log_softmax(-1)
    values, ids = logprobs.topk(count)
    own = logprobs.gather(-1, torch.tensor(chosen, dtype=torch.long, device=raw.device)[:, None]).flatten().tolist()
    return [
        Token(token, logprob, tuple(zip(*top, strict=True)))
        for token, logprob, *top in zip(chosen, own, ids.tolist(), values.tolist(), strict=True)
    ]
