"""Rounds in which engines take turns on the same prompts, and the machine is measured between them. Knows no engine.

One works at a time. Within a round every measure goes around all engines, so that what is compared is minutes apart at
most; who begins changes. The first round is not counted: code and pages are had for the first time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from peers.cpu.engines import NotAvailable
from peers.cpu.turn import Shape

from bloomery.bench.measure import Asked
from bloomery.log import logger

PREFILLS = (128, 512, 1024)
BATCHES = (1, 8, 32)
PROMPT = 32
"""Tokens ahead of those that are decoded."""
CHECKED = 8
"""Texts, and tokens of one text, of which it is said how many agree; the batch that has so many is looked at."""


def measures(steps: int) -> dict[str, Shape]:
    """What is measured, by name. Decoding takes one token more: the first is the prompt's."""
    decoding = {f"decode {batch}": Shape(batch, PROMPT, steps + 1) for batch in BATCHES}
    return decoding | {f"prefill {length}": Shape(1, length, 1) for length in PREFILLS}


class Asks(Protocol):
    """An engine that runs."""

    def ask(self, prompts: Sequence[list[int]], shape: Shape, vocab_size: int) -> dict[str, Any]: ...


@dataclass
class Heat:
    """Engines that ran together. `rounds` has per measure and engine milliseconds: of a step, or to the first token."""

    left_out: dict[str, str] = field(default_factory=dict)
    firsts: dict[str, float] = field(default_factory=dict)
    """Seconds to the first token that an engine ever gave."""
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list)
    rulers: list[dict[str, float]] = field(default_factory=list)
    """One before each round, and one after the last."""
    peaks: dict[str, int] = field(default_factory=dict)
    texts: dict[str, dict[str, list[list[int]]]] = field(default_factory=dict)
    """Of the first round, by measure and engine."""


def run_rounds(
    engines: Mapping[str, Asks],
    shapes: Mapping[str, Shape],
    rounds: int,
    vocab_size: int,
    ruler: Callable[[], dict[str, float]],
) -> Heat:
    """All turns. An engine that fails is left out from there on."""
    heat, running = Heat(), dict(engines)
    for turn in range(rounds + 1):
        logger.info("round %d of %d", turn, rounds)
        if turn:
            heat.rulers.append(ruler())
        found: dict[str, dict[str, float]] = {}
        for place, (measure, shape) in enumerate(shapes.items()):
            prompts = prompts_of(shape, vocab_size, seed=1000 * turn + place)
            found[measure] = {}
            for name in rotated(list(running), turn):
                try:
                    answer = running[name].ask(prompts, shape, vocab_size)
                    seconds, first = seconds_of(answer["arrivals"]), max(times[0] for times in answer["arrivals"])
                except NotAvailable as error:
                    heat.left_out[name] = f"{measure}, round {turn}: {error}"
                    logger.warning("%s is left out: %s", name, error)
                    del running[name]
                    continue
                found[measure][name] = 1e3 * seconds
                heat.peaks[name] = answer["peak_bytes"]
                heat.firsts.setdefault(name, first)
                if not turn:
                    heat.texts.setdefault(measure, {})[name] = answer["ids"]
        if turn:
            heat.rounds.append(found)
    heat.rulers.append(ruler())
    return heat


def prompts_of(shape: Shape, vocab_size: int, seed: int) -> list[list[int]]:
    """New ones each time: nothing can be remembered of an earlier turn."""
    return Asked(*shape, rounds=1, vocab_size=vocab_size, seed=seed).prompts()


def rotated(names: list[str], turn: int) -> list[str]:
    first = turn % len(names) if names else 0
    return names[first:] + names[:first]


def seconds_of(arrivals: Sequence[Sequence[float]]) -> float:
    """Of one step with all texts, or to the last of the first tokens where there are no others.

    An engine may read prompts in parts, so that some texts begin, and end, before others. What counts is the time
    between two tokens of a text whose middle lies after the last text's first token and before the first text's last;
    the middle, since even tokens of one step are told one after the other.

    Raises:
        NotAvailable: no step had all texts.
    """
    begin, end = max(times[0] for times in arrivals), min(times[-1] for times in arrivals)
    if all(len(times) == 1 for times in arrivals):
        return begin
    gaps = [b - a for times in arrivals for a, b in pairwise(times) if begin < (a + b) / 2 < end]
    if not gaps:
        raise NotAvailable("no step had all texts: more new tokens are needed")
    return sum(gaps) / len(gaps)
