"""How far a text has come with the words that it must hold, as ids. Knows no search and no text."""

from dataclasses import dataclass, replace

from bloomery.engine.spelling import read_choice

Word = tuple[tuple[int, ...], ...]
"""Token sequences of which one is to stand in the text; of a plain word there is one."""


def _following(word: Word, prefix: tuple[int, ...]) -> list[int]:
    """Tokens that bring a word further, of which `prefix` is there."""
    found = [ids[len(prefix)] for ids in word if len(ids) > len(prefix) and ids[: len(prefix)] == prefix]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Progress:
    """Of one text. A token that breaks a word off is not looked at again, as in transformers 4.55.4
    (`ConstraintListState`): the word begins anew behind it.

    Args:
        words: all that are to come.
        pending: places of those that have not begun, in the order in which they are tried.
        current: the place of the one that has begun, `prefix`: its tokens so far.
    """

    words: tuple[Word, ...]
    pending: tuple[int, ...]
    current: int | None = None
    prefix: tuple[int, ...] = ()

    @property
    def met(self) -> bool:
        """All words are there."""
        return not self.pending and self.current is None

    @property
    def bank(self) -> int:
        """How far it is: every whole word counts as many tokens as the longest has."""
        longest = max(len(ids) for word in self.words for ids in word)
        whole = len(self.words) - len(self.pending)
        if self.current is None:
            return longest * whole
        left = max(map(len, self.words[self.current])) - len(self.prefix)
        return longest * whole - left

    def wanted(self) -> list[int]:
        """Tokens that would bring it further."""
        if self.current is not None:
            return _following(self.words[self.current], self.prefix)
        return [token for place in self.pending for token in _following(self.words[place], ())]

    def after(self, token: int) -> "Progress":
        """The same text with one more token."""
        if self.current is not None:
            if token in _following(self.words[self.current], self.prefix):
                return self._with(self.current, (*self.prefix, token), self.pending)
            return replace(self, pending=(*self.pending, self.current), current=None, prefix=())
        for place in self.pending:
            if token in _following(self.words[place], ()):
                return self._with(place, (token,), tuple(other for other in self.pending if other != place))
        return self

    def _with(self, place: int, prefix: tuple[int, ...], pending: tuple[int, ...]) -> "Progress":
        whole = prefix in self.words[place]
        return replace(self, pending=pending, current=None if whole else place, prefix=() if whole else prefix)


def none_of(texts: tuple[str, ...]) -> Progress:
    """The progress of an empty text, given its words as "1,2" or "1,2|3"."""
    words = tuple(read_choice(text) for text in texts)
    return Progress(words, tuple(range(len(words))))
