"""Where guesses of a text's next tokens come from: what was said before, or a smaller model. Judges none of them."""

import math
from typing import NamedTuple, Protocol

from torch import Tensor

from bloomery.engine.continuation import Continuation
from bloomery.errors import BloomeryError
from bloomery.ops.draw import inverse_cdf
from bloomery.ops.random import uniform

DRAWN = 1
"""Stream of the numbers that draw a draft's guesses."""


class Guess(NamedTuple):
    """A token, and what it was drawn from: processed logits (V,), None where nothing was left to chance."""

    token: int
    drawn_from: Tensor | None = None


class Guesser(Protocol):
    """Guesses for one text."""

    guesses: list[Guess]

    def begin(self, text: Continuation, most: int) -> None:
        """Guess anew, at most so many tokens, behind a text."""
        ...

    def row(self) -> list[int]:
        """What the draft is to run for one more guess; nothing where there is none, or no draft."""
        ...

    def take(self, logits: Tensor) -> None:
        """The draft's logits behind its row, (V,)."""
        ...

    def settle(self, right: int) -> int:
        """So many guesses were right. Says how many positions the draft takes back."""
        ...


class Lookup:
    """What stood behind the text's last tokens where they stood before: the longest match first, of several the
    earliest, as transformers' PromptLookupCandidateGenerator has it (n-grams, prompt and text together).

    Args:
        longest: most tokens that are to match.
    """

    def __init__(self, longest: int) -> None:
        self.guesses: list[Guess] = []
        self._longest = longest
        self._ids: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}  # an n-gram -> the place behind its first occurrence

    def begin(self, text: Continuation, most: int) -> None:
        self._read(text)
        found = self._found()[:most]
        end = next((place for place, token in enumerate(found) if token in text.rules.ends), most)
        self.guesses = [Guess(token) for token in found[:end]]

    def row(self) -> list[int]:
        return []

    def take(self, logits: Tensor) -> None:
        raise AssertionError("nothing was to be run")

    def settle(self, right: int) -> int:
        return 0

    def _read(self, text: Continuation) -> None:
        """Take in what is new, each n-gram once: looking through the whole text at every step would cost its square."""
        known, prompt = len(self._ids), text.rules.prompt
        new = [token.id for token in text.tokens[max(0, known - len(prompt)) :]]
        self._ids += new if known else prompt + new
        for end in range(known + 1, len(self._ids) + 1):
            for size in range(1, min(self._longest, end) + 1):
                self._behind.setdefault(tuple(self._ids[end - size : end]), end)

    def _found(self) -> list[int]:
        for size in range(min(self._longest, len(self._ids)), 0, -1):
            place = self._behind[tuple(self._ids[-size:])]
            if place < len(self._ids):
                return self._ids[place:]
        return []


class Draft:
    """A smaller model's continuation, through the same options; drawn, where the text's tokens are drawn.

    Args:
        choice: of the text.
        held: tokens of the prompt that the draft's sequence keeps already.
    """

    def __init__(self, choice: int, held: int) -> None:
        self.guesses: list[Guess] = []
        self._choice = choice
        self._held = held
        self._most = self._sure = 0  # guesses to make; tokens of prompt and text
        self._ahead: Continuation | None = None  # the text with the guesses behind it

    def begin(self, text: Continuation, most: int) -> None:
        self.guesses, self._most, self._sure = [], most, len(text.rules.prompt) + len(text)
        self._ahead = text.fork() if most else None

    def row(self) -> list[int]:
        if self._ahead is None or len(self.guesses) == self._most:
            return []
        return [*self._ahead.rules.prompt, *(token.id for token in self._ahead.tokens)][self._held :]

    def take(self, logits: Tensor) -> None:
        assert self._ahead is not None
        rules = self._ahead.rules
        self._held = len(rules.prompt) + len(self._ahead)
        if not (rules.params.remove_invalid_values or math.isfinite(logits.max())):
            raise BloomeryError("the draft model gave logits that are not finite: try dtype float32, or another draft")
        try:
            processed = self._ahead.process(logits)
        except BloomeryError:  # behind guesses that the text need not follow, the options may leave no token
            self._ahead = None
            return
        if rules.params.temperature == 0:
            guess = Guess(int(processed.argmax()))
        else:
            u = uniform(rules.seed, len(self._ahead), self._choice, DRAWN)
            guess = Guess(inverse_cdf(processed, u), processed.clone())
        self.guesses.append(guess)
        if self._ahead.add(self._ahead.token(guess.token, logits)) is not None:
            self._ahead = None

    def settle(self, right: int) -> int:
        held = min(self._held, self._sure + right)
        back, self._held = self._held - held, held
        return back
