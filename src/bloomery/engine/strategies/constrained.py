"""Constrained beam search: the likeliest texts that hold all words they are to hold.

Candidates, ranks and ends are those of transformers 4.55.4 (`_constrained_beam_search`), for one prompt, but for three
things: words count in the text only, not in the prompt; each choice among the tokens of a word that has begun is
followed by itself; and a text without all its words is never given.
"""

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from bloomery.engine.continuation import NoTokenLeft, Rules
from bloomery.engine.params import SamplingParams
from bloomery.engine.processors.chain import likely_culprits
from bloomery.engine.strategies.found import Found, said
from bloomery.engine.strategies.frontier import Beam, Candidate, Search, likeliest, wide
from bloomery.engine.strategy import Decision, Matcher
from bloomery.engine.words import Progress, Word, none_of
from bloomery.errors import BloomeryError, UsageError

BANK = 100
"""What a token of a word is worth beside log-probabilities, where candidates are put in order."""


class ConstrainedBeams(Search):
    """The `num_return_sequences` best of `num_beams` texts that hold the words of `force_words_ids`.

    Beside the likeliest candidates stand those that a word wants next. They are put into banks by how much of the words
    they hold, and the best of each bank go on, then the second of each, and so on (Post and Vilar 2018).

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
        assert not params.force_words, "words become ids before they reach the engine"
        super().__init__(Rules(prompt, params, eos_ids, clock=clock), matcher)
        self.found = Found(self.rules, params.num_beams)
        self.progress = [none_of(params.force_words_ids)]  # of each beam
        _check_words(self.rules, self.progress[0].words)

    def decide(self) -> Decision:
        try:
            totals = self.frontier.totals(range(len(self.progress)))
        except NoTokenLeft:
            if not self.found.ranked:
                raise
            return self._done()
        candidates = likeliest(totals, range(len(self.progress)), wide(self.rules) * self.seats)
        stepped = self._in_banks(self._running(candidates), totals)
        for beam in stepped:
            if beam.finish == "stop":
                self._add(beam)
        enough = self.found.full and self.rules.params.early_stopping is True
        if enough or not self.found.may_improve(candidates[0].total, self.frontier.length + 1):
            return self._done()
        for beam in stepped:
            if beam.finish == "length":
                self._add(beam)
        going = [beam for beam in stepped if beam.finish is None]
        if not going:
            return self._done()
        self.progress = [self._after(beam) for beam in going]
        return Decision(keep=self.frontier.go_on(going))

    def _running(self, candidates: list[Candidate]) -> dict[Candidate, Beam]:
        """The best `num_beams` that do not end. Those that do count as found where they hold all words."""
        running = dict[Candidate, Beam]()
        for rank, candidate in enumerate(candidates):
            beam = self.frontier.extended(candidate)
            if beam.finish != "stop":
                running[candidate] = beam
            elif rank < self.seats:
                self._add(beam)
            if len(running) == self.seats:
                break
        return running

    def _in_banks(self, running: dict[Candidate, Beam], totals: Tensor) -> list[Beam]:
        """These and what the words want, put in order; the first `num_beams` of them."""
        advanced = self._advanced(running, totals)
        if not advanced:
            return list(running.values())
        both = [*running, *advanced]
        banks = {one: self.progress[one.parent].after(one.token).bank for one in both}
        both.sort(key=lambda one: -(BANK * banks[one] + one.total))  # stable
        places = list[int]()  # of each in its bank, of which one may come in several pieces
        for n, one in enumerate(both):
            places.append(places[-1] + 1 if n and banks[one] == banks[both[n - 1]] else 0)
        best = sorted(range(len(both)), key=places.__getitem__)[: self.seats]
        return [running.get(both[n]) or self.frontier.extended(both[n]) for n in best]

    def _advanced(self, running: dict[Candidate, Beam], totals: Tensor) -> list[Candidate]:
        """What brings a text further with its words, and is possible, and is not there already."""
        there = {(one.parent, one.token) for one in running}
        wanted = [(n, token) for n, progress in enumerate(self.progress) for token in progress.wanted()]
        new = [place for place in dict.fromkeys(wanted) if place not in there]
        possible = [Candidate(float(totals[n, token]), n, token) for n, token in new]
        return [one for one in possible if one.total > -torch.inf]

    def _after(self, beam: Beam) -> Progress:
        return self.progress[beam.parent].after(beam.text.tokens[-1].id)

    def _add(self, beam: Beam) -> None:
        if self._after(beam).met:
            self.found.add(beam)

    def _done(self) -> Decision:
        if not self.found.ranked:
            if self.rules.out_of_time():
                raise BloomeryError("max_time was over before a text with all of force_words was found: raise it")
            raise BloomeryError(
                f"no text of {self.rules.most} tokens with all of force_words was found: raise max_new_tokens or "
                f"num_beams, or force fewer words{_without(self.rules.params)}"
            )
        return Decision(said(self.found.ranked, self.rules.params.num_return_sequences), done=True)


def _without(params: SamplingParams) -> str:
    """Other options that may be why no text has the words."""
    names = likely_culprits(replace(params, force_words_ids=()))
    return f", or try it without {names}" if names else ""


def _check_words(rules: Rules, words: tuple[Word, ...]) -> None:
    """Refuse what no text can hold."""
    least = sum(min(map(len, word)) for word in words)
    if least > rules.most:
        raise UsageError(
            f"force_words need {least} tokens, and a text may have {rules.most}: raise max_new_tokens (or max_length), "
            "or force fewer"
        )
    end = next((token for word in words for ids in word for token in ids if token in rules.ends), None)
    if end is not None:
        raise UsageError(f"force_words ask for token {end}, which ends a text: take it out, or give ignore_eos")
