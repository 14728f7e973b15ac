"""What was to be reached, beside what was. Knows no measurement but by `figures`."""

from collections.abc import Callable
from typing import NamedTuple

from peers.cpu.figures import (
    Values,
    shares_of_bandwidth,
    shares_of_products,
    speed_ups,
    spread_of,
    step_times,
)

from bloomery.bench.spread import Spread


class Goal(NamedTuple):
    """A bound on the median over all rounds: at least so much, or at most."""

    title: str
    bound: float
    at_least: bool
    values: Callable[[Values], list[float]]


def _share(engine: str, bound: float, name: str) -> Goal:
    return Goal(f"share of read bandwidth, batch 1, {name}", bound, True, lambda r: shares_of_bandwidth(r, engine))


def _beside(engine: str, other: str, measure: str, bound: float, title: str) -> Goal:
    return Goal(f"{title}, {measure}", bound, True, lambda r: speed_ups(r, measure, engine, other))


def _step(engine: str, batch: int, bound: float, name: str) -> Goal:
    return Goal(f"step time M={batch} / M=1, {name}", bound, False, lambda r: step_times(r, engine, batch))


GOALS = (
    _share("ours-bf16", 0.82, "bf16"),
    _share("ours-int8", 0.80, "int8"),
    _share("ours-int4", 0.70, "int4"),
    _beside("ours-bf16", "llama-bf16", "decode 1", 1.5, "beside llama.cpp bf16"),
    _beside("ours-int8", "llama-q8_0", "decode 1", 1.9, "beside llama.cpp Q8_0"),
    _beside("ours-int4", "llama-q4_0", "decode 1", 1.9, "beside llama.cpp Q4_0"),
    _beside("ours-int8", "ctranslate2-int8", "decode 1", 2.0, "beside CTranslate2 int8"),
    _beside("ours-int8", "ctranslate2-int8", "decode 32", 2.0, "beside CTranslate2 int8"),
    _beside("ours-int8", "ctranslate2-int8", "prefill 512", 2.0, "beside CTranslate2 int8"),
    _beside("ours-bf16", "transformers-bf16", "decode 1", 2.3, "beside transformers bf16"),
    _step("ours-bf16", 8, 1.15, "bf16"),
    _step("ours-bf16", 32, 1.5, "bf16"),
    _step("ours-int8", 8, 1.15, "int8"),
    _step("ours-int8", 32, 1.5, "int8"),
    Goal(
        "prefill 512, share of torch's bf16 products, bf16",
        0.60,
        True,
        lambda r: shares_of_products(r, "ours-bf16", 512),
    ),
)


class Reached(NamedTuple):
    """A goal and the spread over all rounds; None where something of it was not measured."""

    goal: Goal
    spread: Spread | None

    @property
    def met(self) -> bool | None:
        if self.spread is None:
            return None
        value = self.spread.median
        return value >= self.goal.bound if self.goal.at_least else value <= self.goal.bound


def reached(results: Values) -> list[Reached]:
    return [Reached(goal, spread_of(goal.values(results))) for goal in GOALS]
