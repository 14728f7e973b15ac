"""Greedy and sampling: one token after the other, for one text or several behind the same prompt."""

from collections.abc import Callable
from dataclasses import dataclass
from math import fsum
from time import perf_counter
from typing import Any

from torch import Tensor

from bloomery.engine.continuation import Continuation, Rules, reported
from bloomery.engine.params import SamplingParams
from bloomery.engine.strategy import Decision, FinishReason, Matcher, Row, Said
from bloomery.ops.draw import inverse_cdf
from bloomery.ops.largest import largest
from bloomery.ops.random import uniform


@dataclass
class Text:
    """One of a request's texts, and what the last step did to it."""

    choice: int
    continuation: Continuation
    finish: FinishReason | None = None
    told: int = 0
    """Tokens that have been said."""

    @property
    def mean_logprob(self) -> float:
        """Of its tokens, as the model had them."""
        return fsum(token.logprob or 0.0 for token in self.continuation.tokens) / len(self.continuation)

    def said(self, **ranked: Any) -> Said:
        """Its tokens that have not been said."""
        new, self.told = tuple(self.continuation.tokens[self.told :]), len(self.continuation)
        return Said(new, self.finish, matcher=self.continuation.matcher, **({"choice": self.choice} | ranked))


class Sampling:
    """The likeliest token at temperature 0, else one by inverse CDF of a counter-based uniform.

    The prompt is run once, however many texts there are behind it, and text 0 is what a request for one text gets. With
    `best_of`, more texts are generated than are given: those whose tokens the model finds likeliest on average.

    Raises:
        UsageError: an option cannot be met behind this prompt.
    """

    def __init__(
        self,
        prompt: list[int],
        params: SamplingParams,
        eos_ids: tuple[int, ...] = (),
        matcher: Matcher | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.rules = Rules(prompt, params, eos_ids, clock=clock)
        self.texts = [Text(0, Continuation(self.rules, matcher))]
        self._running = list(self.texts)  # one for each sequence
        self._stepped: list[tuple[int, Text]] = []  # what got a token, behind which sequence

    @property
    def seats(self) -> int:
        return self.rules.params.texts

    @property
    def positions(self) -> int:
        return self.rules.positions

    def begin(self) -> None:
        self.rules.begin()

    def rows(self) -> list[Row]:
        if self._at_prompt:
            return [Row(self.rules.prompt, wanted=1)]
        return [Row([text.continuation.tokens[-1].id], wanted=1) for text in self._running]

    def accept(self, index: int, logits: Tensor | None, hidden: Tensor) -> None:
        assert logits is not None
        raw = logits[-1]
        processed = self._running[index].continuation.process(raw)
        if self._at_prompt:
            first = self.texts[0].continuation
            self.texts += [Text(choice, first.fork()) for choice in range(1, self.seats)]
            extended = self.texts
        else:
            extended = [self._running[index]]
        for text in extended:
            self._add(text, self._choose(text, processed), raw)
            self._stepped.append((index, text))

    def decide(self) -> Decision:
        stepped, self._stepped = self._stepped, []
        going = [(parent, text) for parent, text in stepped if text.finish is None]
        self._running = [text for _, text in going]
        said = self._say([text for _, text in stepped])
        return Decision(said, done=not going, keep=tuple(parent for parent, _ in going))

    @property
    def _at_prompt(self) -> bool:
        return not self.texts[0].continuation.tokens

    def _choose(self, text: Text, processed: Tensor) -> int:
        if self.rules.params.temperature == 0:
            return largest(processed)[1]
        return inverse_cdf(processed, uniform(self.rules.seed, len(text.continuation), text.choice))

    def _add(self, text: Text, chosen: int, raw: Tensor) -> None:
        if self.rules.params.best_of is None:
            token = text.continuation.token(chosen, raw)
        else:  # which are the best shows in what is reported
            token = reported([chosen], raw[None], self.rules.params.logprobs or 0)[0]
        text.finish = text.continuation.add(token)

    def _say(self, stepped: list[Text]) -> tuple[Said, ...]:
        """What there is to say of texts that got tokens: with `best_of` nothing before all have ended."""
        if self.rules.params.best_of is None:
            return tuple(self._said(text) for text in stepped)
        if any(text.finish is None for text in self.texts):
            return ()
        ranked = sorted(self.texts, key=lambda text: -text.mean_logprob)[: self.rules.params.num_return_sequences]
        return tuple(self._said(text, choice=n, score=text.mean_logprob) for n, text in enumerate(ranked))

    def _said(self, text: Text, **ranked: Any) -> Said:
        return text.said(**ranked)
