"""Speculative decoding: tokens are guessed, and the model, which sees all guesses at once, chooses as it would alone.

Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding"; Chen et al. 2023; and for guesses
from the text itself transformers' prompt lookup.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from torch import Tensor

from bloomery.engine.continuation import Continuation
from bloomery.engine.params import SamplingParams
from bloomery.engine.strategies.guessers import Draft, Guesser, Lookup
from bloomery.engine.strategies.pace import Pace
from bloomery.engine.strategies.sampling import Sampling, Text
from bloomery.engine.strategy import Decision, Matcher, Row, Said, Speculation
from bloomery.ops.draw import accept_or_redraw
from bloomery.ops.random import uniform

DEFAULT_ASSISTANT_TOKENS = 5
DEFAULT_NGRAM = 2
CHECKING = 0.05
"""What one more position costs in a step that runs anyway, as a part of it: about what one more row does (docs/log.md,
steps of batch 1 and of batch 8)."""
TESTED, REDRAWN = 2, 3
"""Streams of the numbers that test a draft's guesses, and that draw where one is rejected."""


@dataclass
class _Try:
    """The guesses for one text, and what became of them."""

    guesser: Guesser
    pace: Pace
    proposed: int = 0
    accepted: int = 0
    steps: int = 1  # the prompt's
    given: int = 0  # tokens of this step
    right: int = 0  # guesses of this step
    open: bool = True  # all guesses were right so far


class Speculative(Sampling):
    """`Sampling` that may give several tokens a step.

    A row is the last token and the guesses behind it; the model's choice at each place is as `Sampling` makes it, from
    the same number. The text goes on to the first place where it is not what was guessed, and the rest is taken back.
    So tokens are those of `Sampling` at temperature 0, and with guesses from the text itself at any. A draft's guesses
    are drawn, and accepted or replaced such that the tokens' distribution is the model's.

    With a draft there are two sequences of each text, its own and the draft's, in turn.

    Args:
        draft: what a step of the draft costs, as a part of one of the model; None: guesses are looked up.

    Raises:
        UsageError: an option cannot be met behind this prompt.
    """

    def __init__(
        self,
        prompt: list[int],
        params: SamplingParams,
        eos_ids: tuple[int, ...] = (),
        matcher: Matcher | None = None,
        *,
        draft: float | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        super().__init__(prompt, params, eos_ids, matcher, clock)
        self._draft = draft
        self._width = 1 if draft is None else 2  # sequences of a text
        self._tries: dict[int, _Try] = {}  # of each text, once the prompt has been run
        self._drafting = False

    def rows(self) -> list[Row]:
        if self._at_prompt:
            # Where one text follows, the draft reads the prompt when it first guesses: the first token waits for none.
            shared = self.rules.prompt if self.seats > 1 else []
            return [*super().rows(), Row(shared, wanted=0, model=1)][: self._width]
        tries = [self._tries[text.choice] for text in self._running]
        drafts = [one.guesser.row() for one in tries]
        self._drafting = any(drafts)
        rows = list[Row]()
        for text, one, ids in zip(self._running, tries, drafts, strict=True):
            guesses = [guess.token for guess in one.guesser.guesses]
            checked = [] if self._drafting else [text.continuation.tokens[-1].id, *guesses]
            rows += [Row(checked, wanted=len(checked)), Row(ids, wanted=1, model=1)][: self._width]
        return rows

    def accept(self, index: int, logits: Tensor | None, hidden: Tensor) -> None:
        assert logits is not None
        place, drafted = divmod(index, self._width)
        if self._at_prompt:
            super().accept(place, logits, hidden)
        elif drafted:
            self._tries[self._running[place].choice].guesser.take(logits[-1])
        else:
            for raw in logits:
                self._check(place, raw)

    def decide(self) -> Decision:
        if self._drafting:
            return Decision()
        back = [0] * (len(self._running) * self._width)
        stepped, self._stepped = self._stepped, []
        for parent, text in stepped:
            if text.choice in self._tries:
                back[parent * self._width : (parent + 1) * self._width] = self._settle(self._tries[text.choice])
            else:
                self._tries[text.choice] = self._new_try(text)
        going = [(parent, text) for parent, text in stepped if text.finish is None]
        self._running = [text for _, text in going]
        said = self._say([text for _, text in stepped])
        for text in self._running:
            self._begin(text.continuation, self._tries[text.choice])
        keep = tuple(parent * self._width + n for parent, _ in going for n in range(self._width))
        return Decision(said, not going, tuple(back), keep)

    def _new_try(self, text: Text) -> _Try:
        params = self.rules.params
        if self._draft is None:
            assert params.prompt_lookup_num_tokens is not None
            pace = Pace(params.prompt_lookup_num_tokens, CHECKING)
            return _Try(Lookup(params.max_matching_ngram_size or DEFAULT_NGRAM), pace, given=1)
        most = params.num_assistant_tokens or DEFAULT_ASSISTANT_TOKENS
        pace = Pace(most, self._draft + CHECKING)
        return _Try(Draft(text.choice, len(self.rules.prompt) if self.seats > 1 else 0), pace, given=1)

    def _begin(self, text: Continuation, one: _Try) -> None:
        # The step gives one token more than there are guesses.
        one.guesser.begin(text, min(one.pace.wanted(), self.rules.most - len(text) - 1))
        one.given, one.right, one.open = 0, 0, True

    def _check(self, place: int, raw: Tensor) -> None:
        """The text's next token, from the model's logits (V,), where no guess before was wrong."""
        text = self._running[place]
        one = self._tries[text.choice]
        if not one.open:
            return
        if not one.given:
            self._stepped.append((place, text))
        processed, guesses = text.continuation.process(raw), one.guesser.guesses
        guess = guesses[one.given] if one.given < len(guesses) else None
        if guess is None or guess.drawn_from is None:
            chosen = self._choose(text, processed)
        else:
            key = (self.rules.seed, len(text.continuation), text.choice)
            test, again = uniform(*key, TESTED), uniform(*key, REDRAWN)
            chosen = accept_or_redraw(processed, guess.drawn_from, guess.token, test, again)
        self._add(text, chosen, raw)
        right = guess is not None and guess.token == chosen
        one.given += 1
        one.right += right
        one.open = right and text.finish is None

    def _settle(self, one: _Try) -> list[int]:
        """Positions that the text's sequences take back."""
        guessed = len(one.guesser.guesses)
        one.proposed += guessed
        one.accepted += one.right
        one.steps += 1
        one.pace.learn(guessed, one.right, one.given)
        return [guessed - one.right, one.guesser.settle(one.right)][: self._width]

    def _said(self, text: Text, **ranked: Any) -> Said:
        one = self._tries[text.choice]
        said = super()._said(text, **ranked)
        if text.finish is None:
            return said
        return said._replace(speculation=Speculation(one.proposed, one.accepted, one.steps))
