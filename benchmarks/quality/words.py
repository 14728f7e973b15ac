"""What a word is, and which words of a sample are new. Knows no model and no token."""

import re
from collections.abc import Iterable
from typing import NamedTuple

CURLY = "\u2019"
WORD = re.compile(rf"[^\W\d_]+(?:['{CURLY}][^\W\d_]+)*")
DEFINITION = (
    "a word: a run of letters, apostrophes between letters included (a curly one counted as '), lower-cased; of a "
    "sample every word that ends after the prompt, except one that the limit of tokens may have cut"
)


class Words(NamedTuple):
    """How many words a sample has, and those of them that are not known, in order."""

    total: int
    unknown: list[str]


def words_of(text: str) -> set[str]:
    """The different words of a text."""
    return {_plain(found.group()) for found in WORD.finditer(text)}


def vocabulary(texts: Iterable[str]) -> set[str]:
    """The different words of all texts."""
    known: set[str] = set()
    return known.union(*map(words_of, texts))


def check_words(prompt: str, text: str, cut: bool, known: set[str]) -> Words:
    """Look up the words that a text adds to its prompt.

    Args:
        prompt: what the text continues, perhaps in the middle of a word.
        cut: the text may end in the middle of a word.
        known: words, as `words_of` gives them.
    """
    whole = prompt + text
    found = [match for match in WORD.finditer(whole) if match.end() > len(prompt)]
    if cut and found and found[-1].end() == len(whole):
        found.pop()
    said = [_plain(match.group()) for match in found]
    return Words(len(said), [word for word in said if word not in known])


def _plain(word: str) -> str:
    return word.lower().replace(CURLY, "'")
