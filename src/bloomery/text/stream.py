"""Ids, one at a time -> text that never has to be taken back: whole UTF-8 characters, stop strings held until sure.

Knows nothing of engines, but can watch a request for one: `advance` says when a stop string is complete.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Self

from torch import Tensor

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for bytes that are not (yet) a character."""

MOST_UNFINISHED = 3
"""Bytes of the longest character but one: more replacement characters than that are not all waiting for its last."""

CONTEXT = 5
"""Tokens of the prompt that are decoded with the text: more than one, as special tokens among them show nothing."""


class TextStream:
    """The text of one request as it grows.

    Args:
        decode: ids -> text.
        stop_strings: the text ends before the first of them.
        before: ids that the text follows: a decoder may treat the first token of all otherwise (a leading space).
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop_strings: tuple[str, ...] = (),
        before: Sequence[int] = (),
    ) -> None:
        self._decode = decode
        self._stops = stop_strings
        self._ids = _context(decode, before)
        # Only ids from `_anchor` on are decoded again: a place where characters are whole, and one token before the
        # last such place, for the same reason.
        text = decode(self._ids)
        self._anchor = 0
        self._known = len(text) - _unfinished(text)  # characters from `_anchor` on that are in `_text`, or before it
        self._whole = len(self._ids) if self._known == len(text) else 0
        self._text = ""  # all that will not change
        self._taken = 0  # characters handed out
        self.stopped = False

    def allowed(self) -> Tensor | None:
        """Tokens that may come next: None, all."""
        return None

    def advance(self, token_id: int) -> bool:
        """Take one more token; True when a stop string is complete."""
        self._ids.append(token_id)
        text = self._decode(self._ids[self._anchor :])
        unfinished = _unfinished(text)
        # A decoder that falls back to bytes shows none of those in a row while the last of them are no character: what
        # is to come will show them, unless it does not come soon.
        if unfinished and len(self._ids) - self._whole <= MOST_UNFINISHED:
            return self.stopped
        self._append(text[self._known : len(text) - unfinished])
        self._known = len(text) - unfinished
        if not unfinished:
            self._anchor, self._whole = self._whole, len(self._ids)
            self._known = len(self._decode(self._ids[self._anchor :]))
        return self.stopped

    def fork(self) -> Self:
        """Another text that begins as this one does."""
        other = copy(self)
        other._ids = list(self._ids)
        return other

    def take(self) -> str:
        """What is sure since the last call: not the beginning of a stop string."""
        return self._hand_out(len(self._text) if self.stopped else len(self._text) - self._held())

    def finish(self) -> str:
        """What was held back, once no more tokens come."""
        if not self.stopped:
            self._append(self._decode(self._ids[self._anchor :])[self._known :])
            self._anchor, self._known = len(self._ids), 0
        return self._hand_out(len(self._text))

    @property
    def text(self) -> str:
        """All that was handed out."""
        return self._text[: self._taken]

    def _hand_out(self, end: int) -> str:
        piece = self._text[self._taken : end]
        self._taken += len(piece)
        return piece

    def _append(self, new: str) -> None:
        reach = max(map(len, self._stops), default=1) - 1
        start = max(0, len(self._text) - reach)  # a stop string may have begun in what was there
        text = self._text + new
        found = [place for stop in self._stops if (place := text.find(stop, start)) >= 0]
        self._text = text[: min(found)] if found else text
        self.stopped = bool(found)

    def _held(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        return next(
            (
                length
                for length in range(min(longest, len(self._text)), 0, -1)
                if any(stop.startswith(self._text[-length:]) for stop in self._stops)
            ),
            0,
        )


def _context(decode: Callable[[Sequence[int]], str], before: Sequence[int]) -> list[int]:
    """The last ids of a prompt, from a place on where no character is cut in two."""
    ends = [list(before[-count:]) for count in range(CONTEXT, CONTEXT + MOST_UNFINISHED + 1)]
    return next((ids for ids in ends if not decode(ids).startswith(UNFINISHED)), ends[0])


def _unfinished(text: str) -> int:
    """Characters at its end that the next token may still make one of."""
    return min(len(text) - len(text.rstrip(UNFINISHED)), MOST_UNFINISHED)
