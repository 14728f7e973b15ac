"""Beam search and beam sampling: the likeliest sequences, not the likeliest token of each step.

What counts as best, and when a search ends, are those of transformers 5 (`_beam_search`), for one prompt.
Letters: K candidates, R beams, V tokens.
"""

from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor

from bloomery.engine.continuation import NoTokenLeft, Rules
from bloomery.engine.params import SamplingParams
from bloomery.engine.strategies.found import Found, said
from bloomery.engine.strategies.frontier import Candidate, Search, likeliest, picked, wide
from bloomery.engine.strategy import Decision, Matcher
from bloomery.ops.draw import inverse_cdf
from bloomery.ops.random import uniform


class BeamSearch(Search):
    """The `num_return_sequences` best of `num_beams` texts.

    Of all beams' next tokens, the K likeliest sequences are candidates; with a temperature they are drawn, none twice.
    Those that end count as found where they are among the first `num_beams`, and the likeliest `num_beams` of the
    others go on.

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
        ends = 0 if params.ignore_eos else len(eos_ids)
        super().__init__(Rules(prompt, params, eos_ids, keep=ends + 1 if ends else 2, clock=clock), matcher)
        self.found = Found(self.rules, params.num_beams)
        self._hopeful = True  # a running beam may still become better than the worst that was found

    def decide(self) -> Decision:
        try:
            candidates = self._candidates()
        except NoTokenLeft:
            if not self.found.ranked:
                raise
            return self._done()
        length, stepped = self.frontier.length + 1, [self.frontier.extended(candidate) for candidate in candidates]
        if self._hopeful and not self._enough:
            for beam in stepped[: self.seats]:
                if beam.finish is not None:
                    self.found.add(beam)
        going = sorted((beam for beam in stepped if beam.finish is None), key=lambda beam: -beam.total)[: self.seats]
        self._hopeful = self._hopeful and bool(going) and self.found.may_improve(going[0].total, length)
        if not self._hopeful or self._enough:
            return self._done()
        return Decision(keep=self.frontier.go_on(going))

    def _candidates(self) -> list[Candidate]:
        """The K best, or K drawn, in that order."""
        indices, most = range(len(self.frontier.beams)), wide(self.rules) * self.seats
        totals = self.frontier.totals(indices)
        if not self.rules.params.temperature:
            return likeliest(totals, indices, most)
        return picked(totals, indices, self._drawn(totals, most))

    def _drawn(self, totals: Tensor, most: int) -> list[int]:
        """Places of at most so many of (R, V) totals, each drawn from what the ones before have left."""
        left, chosen = totals.flatten().clone(), list[int]()
        for n in range(min(most, int((left > -torch.inf).sum()))):
            chosen.append(inverse_cdf(left, uniform(self.rules.seed, self.frontier.length, n)))
            left[chosen[-1]] = -torch.inf
        return chosen

    @property
    def _enough(self) -> bool:
        return self.found.full and self.rules.params.early_stopping is True

    def _done(self) -> Decision:
        return Decision(said(self.found.ranked, self.rules.params.num_return_sequences), done=True)
