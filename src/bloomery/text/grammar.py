"""Which tokens may come next in a text of a given form. Knows no engine and no option, and compiles nothing."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from bloomery.errors import BloomeryError
from bloomery.text.stream import TextStream

if TYPE_CHECKING:
    from llguidance import LLMatcher

NOTHING = "NoExtension"
"""What the library says of a text that no token can continue."""


class Grammar:
    """The form of one text, as far as it has been followed.

    Args:
        matcher: the library's.
        size: tokens of the model.
        ends: tokens that end a text: they are never part of it, whatever they read as.
        closing: whether they may be chosen where the text may end.
        stand_in: the token by which the library says that the text may end.
        name: of what asked for it, for messages.
    """

    def __init__(
        self, matcher: "LLMatcher", size: int, ends: Sequence[int], *, closing: bool, stand_in: int, name: str
    ) -> None:
        self._matcher, self._size, self._name = matcher, size, name
        self._ends, self._closing, self._stand_in = list(ends), closing, stand_in
        self._count = 0
        self._allowed: Tensor | None = None

    def allowed(self) -> Tensor:
        """Tokens that may come next: (V,) bool. Not to be changed.

        Raises:
            BloomeryError: to say which would take more than the library's limits for a step.
        """
        if self._allowed is None:
            self._allowed = self._mask()
        error = self._matcher.get_error()
        if error and NOTHING not in error:
            raise BloomeryError(
                f"{self._name} cannot be followed beyond generated token {self._count} ({one_line(error)}): simplify it"
            )
        return self._allowed

    def advance(self, token_id: int) -> bool:
        """Take one more token; True where the text is complete, and nothing but its end can follow."""
        self._count += 1
        if token_id in self._ends:
            return True
        self._allowed = None
        # Where this fails, `allowed` says so: a text that has ended does not need to know.
        if not self._matcher.consume_token(token_id) or not self._matcher.is_accepting():
            return False
        self._allowed = self._mask()
        return int(self._allowed.count_nonzero()) == int(self._allowed[self._ends].count_nonzero())

    def fork(self) -> "Grammar":
        """One that goes on from here on its own."""
        other = copy(self)
        other._matcher = self._matcher.deep_copy()
        return other

    def _mask(self) -> Tensor:
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = torch.from_numpy(np.unpackbits(packed, count=self._size, bitorder="little").view(np.bool_))
        mask[self._stand_in : self._stand_in + 1] = False  # which may lie behind the model's own
        mask[self._ends] = self._closing and self._matcher.is_accepting()
        return mask


class GuidedText(TextStream):
    """The text of a request that must have a form."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop_strings: tuple[str, ...],
        grammar: Grammar,
        before: Sequence[int] = (),
    ) -> None:
        super().__init__(decode, stop_strings, before)
        self._grammar = grammar

    def allowed(self) -> Tensor | None:
        return self._grammar.allowed()

    def advance(self, token_id: int) -> bool:
        stopped = super().advance(token_id)
        return self._grammar.advance(token_id) or stopped

    def fork(self) -> Self:
        other = super().fork()
        other._grammar = self._grammar.fork()
        return other


def one_line(error: str) -> str:
    """The first line of a message of the library, cut where it is very long."""
    first = error.strip().split("\n")[0]
    return first if len(first) <= 200 else f"{first[:200]} …"
