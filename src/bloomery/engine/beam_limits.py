"""Which options of groups of beams and of forced words contradict each other, and others. Knows them by name only."""

from collections.abc import Iterator, Mapping
from typing import Any

from bloomery.engine.spelling import read_choice, read_sequence


def contradictions(values: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """Of each rule whether it is kept, and what to say where it is not: both options, and which to drop."""
    yield from _groups(values)
    name = next((name for name in ("force_words", "force_words_ids") if values[name]), None)
    if name is not None:
        yield from _words(name, values)


def _groups(values: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    beams, groups, penalty = (values[name] for name in ("num_beams", "num_beam_groups", "diversity_penalty"))
    yield (
        beams % groups == 0,
        f"num_beams {beams} cannot be cut into num_beam_groups {groups} of one size: give a multiple",
    )
    yield (
        groups == 1 or penalty is not None,
        f"num_beam_groups {groups} would be {groups} times the same: set diversity_penalty, such as 1.0",
    )
    yield (
        penalty is None or groups > 1,
        f"diversity_penalty {penalty} is between groups of beams: set num_beam_groups, or drop it",
    )
    yield groups == 1 or values["temperature"] == 0, _drawn(f"num_beam_groups {groups}", values)


def _words(name: str, values: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    yield (
        values["num_beam_groups"] == 1,
        f"{name} and num_beam_groups {values['num_beam_groups']} are two ways to search: drop one of them",
    )
    yield values["temperature"] == 0, _drawn(name, values)
    for word in values["force_words"]:
        stop = next((stop for stop in values["stop_strings"] if stop in word), None)
        yield (
            stop is None,
            f"force_words asks for {word!r}, and stop string {stop!r} would end the text before it: drop one of them",
        )
    never = {(token,) for token in values["suppress_tokens"]} | {read_sequence(t) for t in values["bad_words_ids"]}
    for text in values["force_words_ids"]:
        yield (
            not all(any(_holds(ids, part) for part in never) for ids in read_choice(text)),
            f"force_words_ids asks for {text}, which suppress_tokens or bad_words_ids forbid: drop it in one of them",
        )


def _drawn(name: str, values: Mapping[str, Any]) -> str:
    return f"{name} takes the likeliest, and temperature {values['temperature']} draws: drop one of them"


def _holds(ids: tuple[int, ...], part: tuple[int, ...]) -> bool:
    return any(ids[n : n + len(part)] == part for n in range(len(ids)))
