"""Finds what samples copy word for word from long texts. Knows no model and no token.

All stretches of a fixed length of a text are compared with those of the samples by 64-bit fingerprints, and what agrees
is compared letter by letter and followed to its end. The length is halved for the samples of which nothing was found.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

SEEDS = (32, 16, 8, 4, 2, 1)
"""Characters that are compared by fingerprint."""
FACTOR = np.uint64(0x9E3779B97F4A7C15)
SHIFT = np.uint64(29)
DEFINITION = (
    "a copy: the longest run of characters of a sample, its prompt left out, that occurs in one of the training texts; "
    "its tokens: how many the model's tokenizer makes of it"
)

Codes = np.ndarray[tuple[int], np.dtype[Any]]


class Copy(NamedTuple):
    """Characters of a sample from `start` on that are those of the text `source` from `place` on."""

    text: str
    start: int
    source: str
    place: int


def longest_copies(samples: Sequence[str], texts: Mapping[str, str]) -> list[Copy | None]:
    """The longest copy of each sample, the first of equally long ones; None where no character occurs in any text.

    Args:
        samples: short texts.
        texts: name -> long text; a copy lies within one of them.
    """
    found: list[Copy | None] = [None] * len(samples)
    for length in SEEDS:
        left = {number: sample for number, sample in enumerate(samples) if found[number] is None}
        wanted: dict[int, list[tuple[int, int]]] = {}
        for number, sample in left.items():
            for start, print_ in enumerate(fingerprints(sample, length).tolist()):
                wanted.setdefault(print_, []).append((number, start))
        for source, text in texts.items() if wanted else ():
            for number, start, place in _meetings(wanted, left, text, length):
                size = _common(samples[number], start, text, place)
                best = found[number]
                if size >= length and (best is None or size > len(best.text)):
                    found[number] = Copy(samples[number][start : start + size], start, source, place)
    return found


def fingerprints(text: str, length: int) -> Codes:
    """(len(text) - length + 1,) uint64 of every stretch of `length` characters, a power of two: equal stretches have
    equal ones, and different stretches nearly always different ones."""
    prints = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    if len(prints) < length:
        return prints[:0]
    size = 1
    while size < length:
        prints = prints[:-size] * FACTOR + prints[size:]
        prints = (prints ^ (prints >> SHIFT)) * FACTOR
        size *= 2
    return prints


def _meetings(
    wanted: Mapping[int, list[tuple[int, int]]], samples: Mapping[int, str], text: str, length: int
) -> Iterator[tuple[int, int, int]]:
    """(sample, place in it, place in the text) where stretches have one fingerprint and what stands before differs."""
    prints, keys = fingerprints(text, length), np.array(sorted(wanted), dtype=np.uint64)
    nearest = keys[np.searchsorted(keys, prints).clip(max=len(keys) - 1)]
    for place in np.flatnonzero(nearest == prints).tolist():
        for number, start in wanted[int(prints[place])]:
            if not start or not place or samples[number][start - 1] != text[place - 1]:
                yield number, start, place


def _common(sample: str, start: int, text: str, place: int) -> int:
    """Characters that are the same from these places on."""
    most, size = min(len(sample) - start, len(text) - place), 0
    while size < most and sample[start + size] == text[place + size]:
        size += 1
    return size
