"""How token sequences and biases are written as texts, so that a command line, a recipe and Python say them alike.

A sequence is "1,2,3", a choice of sequences "1,2|3"; a bias is "1,2,3=-5.0". Knows no option's
meaning and no vocabulary.
"""

import json
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from bloomery.errors import UsageError

OR = "|"
"""Between what is a choice."""


def read_sequence(text: str) -> tuple[int, ...]:
    """Ids of "1,2,3". Raises ValueError for anything else."""
    return tuple(_digits(part) for part in text.split(","))


def read_choice(text: str) -> tuple[tuple[int, ...], ...]:
    """Sequences of "1,2|3", of which one is meant. Raises ValueError for anything else."""
    return tuple(read_sequence(part) for part in text.split(OR))


def read_bias(text: str) -> tuple[tuple[int, ...], float]:
    """Ids and bias of "1,2,3=-5.0". Raises ValueError for anything else."""
    ids, sign, bias = text.partition("=")
    if not sign:
        raise ValueError(text)
    return read_sequence(ids), float(bias)


def spell_sequences(name: str, value: Any) -> tuple[str, ...]:
    """Sequences, each as text or as a list of ids -> texts.

    Raises:
        UsageError: one is neither, or is empty.
    """
    return tuple(_spell_sequence(name, entry) for entry in _entries(name, value, "a list of id lists"))


def spell_choices(name: str, value: Any) -> tuple[str, ...]:
    """Sequences, and lists of sequences that are choices, each as text or as ids -> texts.

    Raises:
        UsageError: one is neither, or is empty, or begins another of its choice, which then would do nothing.
    """
    return tuple(_spell_choice(name, entry) for entry in _entries(name, value, "a list of id lists"))


def spell_words(name: str, value: Any) -> tuple[str, ...]:
    """Texts, and lists of texts that are choices -> texts, "cat|dog" for a choice.

    Raises:
        UsageError: one is neither, or is empty.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise UsageError(f"{name} is {_shown(value)}: give a list of texts, also for one")
    spelled = []
    for entry in value:
        words = [entry] if isinstance(entry, str) else entry
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise UsageError(f"{name} has {_shown(entry)}: give a text, or a list of texts of which one is meant")
        if len(words) > 1 and any(OR in word for word in words):
            raise UsageError(f"{name} has {_shown(entry)}: '{OR}' stands between the words of a choice")
        text = OR.join(words)
        if not all(word.strip() for word in text.split(OR)):
            raise UsageError(f"{name} has {_shown(entry)}, of which a word is empty: it would ask for nothing")
        spelled.append(text)
    return tuple(spelled)


def spell_biases(name: str, value: Any, *, single: bool) -> tuple[str, ...]:
    """Biases as texts, pairs or a mapping of an id (`single`) or of sequences to numbers -> texts.

    Raises:
        UsageError: one is none of these, is no number below infinity, or a sequence stands there twice.
    """
    entries = value.items() if isinstance(value, Mapping) else _entries(name, value, "a mapping")
    biases = dict[tuple[int, ...], float]()
    for entry in entries:
        ids, bias = _bias(name, entry, single)
        if ids in biases:
            raise UsageError(f"{name} gives {','.join(map(str, ids))} two biases: keep one")
        biases[ids] = bias
    return tuple(f"{','.join(map(str, ids))}={bias!r}" for ids, bias in biases.items())


def _bias(name: str, entry: Any, single: bool) -> tuple[tuple[int, ...], float]:
    shape = "15=2.5" if single else "1,2,3=-5.0"
    try:
        if isinstance(entry, str):
            ids, bias = read_bias(entry)
        else:
            key, number = entry
            if not isinstance(number, Real) or isinstance(number, bool):
                raise TypeError(number)
            # A key may be a text too: a JSON object has no other keys.
            ids = read_sequence(key) if isinstance(key, str) else _ids([key] if isinstance(key, Integral) else key)
            bias = float(number)
        if not bias < math.inf or not ids or (single and len(ids) > 1):
            raise ValueError(bias)
    except (TypeError, ValueError):
        raise UsageError(f"{name} has {_shown(entry)}: write it as {shape}, ids before and a bias behind '='") from None
    return ids, bias


def _spell_sequence(name: str, entry: Any) -> str:
    try:
        ids = read_sequence(entry) if isinstance(entry, str) else _ids(entry)
        if not ids:
            raise ValueError
    except (TypeError, ValueError):
        raise UsageError(f"{name} has {_shown(entry)}: write it as 1,2,3, the ids of its tokens") from None
    return ",".join(map(str, ids))


def _spell_choice(name: str, entry: Any) -> str:
    shape = f"write it as 1,2,3, the ids of its tokens, or as a choice, 1,2{OR}3"
    try:
        nested = not isinstance(entry, str) and any(not isinstance(part, Integral) for part in entry)
        choice = read_choice(entry) if isinstance(entry, str) else tuple(map(_ids, entry if nested else [entry]))
        if not choice or not all(choice):
            raise ValueError
    except (TypeError, ValueError):
        raise UsageError(f"{name} has {_shown(entry)}: {shape}") from None
    texts = [",".join(map(str, ids)) for ids in choice]
    for one, text in enumerate(texts):
        for other in (n for n in range(len(choice)) if n != one):
            if choice[other][: len(choice[one])] == choice[one]:
                raise UsageError(f"{name} has {OR.join(texts)}: {text} begins {texts[other]}, so leave the longer out")
    return OR.join(texts)


def _ids(values: Iterable[Any]) -> tuple[int, ...]:
    ids = []
    for value in values:
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
            raise TypeError(value)
        ids.append(int(value))
    return tuple(ids)


def _digits(part: str) -> int:
    if not part.strip().isdecimal():
        raise ValueError(part)
    return int(part)


def _entries(name: str, value: Any, wanted: str) -> list[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise UsageError(f"{name} is {_shown(value)}: give {wanted}, or a list of texts, also for one")
    return [entry for given in value for entry in _listed(given)]


def _listed(entry: Any) -> list[Any]:
    """The texts of a list that came as one text, as a variable of the environment is; else the entry itself."""
    if not isinstance(entry, str) or not entry.lstrip().startswith("["):
        return [entry]
    try:
        texts = json.loads(entry)
    except ValueError:
        return [entry]
    return texts if all(isinstance(text, str) for text in texts) else [entry]


def _shown(value: Any) -> str:
    return repr(value)[:80]
