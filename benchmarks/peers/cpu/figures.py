"""Rounds -> what is said of them: spreads, ratios round by round, shares of what the machine can do, texts that agree.

Arithmetic only, on the plain values of a results file. Knows no engine's code and no clock.
"""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from peers.cpu.engines import ENGINES, is_ours, ours

from bloomery.bench.spread import Spread, spread
from bloomery.model.config import DecoderConfig
from bloomery.train.report.flops import StepCost

Values = dict[str, Any]
REFERENCES = ("ours-fp32", "ctranslate2-fp32", "ours-bf16", "transformers-bf16", "llama-bf16")
"""Whose texts the others' are compared with: the first that is there."""


def milliseconds(results: Values, measure: str, engine: str) -> list[float]:
    """Of each round in which an engine had its turn."""
    return [found[measure][engine] for found in all_rounds(results) if engine in found[measure]]


def speed_ups(results: Values, measure: str, engine: str, beside: str) -> list[float]:
    """How many times as fast an engine is as another one, in each round that has both."""
    paired = (found[measure] for found in all_rounds(results))
    return [one[beside] / one[engine] for one in paired if engine in one and beside in one]


def step_times(results: Values, engine: str, batch: int) -> list[float]:
    """What a step of a batch costs, in steps of one text."""
    paired = ((found[f"decode {batch}"], found["decode 1"]) for found in all_rounds(results))
    return [many[engine] / one[engine] for many, one in paired if engine in many and engine in one]


def shares_of_bandwidth(results: Values, engine: str) -> list[float]:
    """What a step of one text reads, over its time, beside what memory gave before and after the round."""
    read = results["engines"].get(engine, {}).get("facts", {}).get("read", {}).get("1")
    if read is None:
        return []
    size = read["weights (bytes a step)"] + read["KV (bytes a step)"]
    return [
        size / (found["decode 1"][engine] / 1e3) / 1e9 / ruler
        for found, ruler in between(results, "gb_per_s")
        if engine in found["decode 1"]
    ]


def shares_of_products(results: Values, engine: str, length: int) -> list[float]:
    """Operations of reading a prompt, over its time, beside torch's bf16 products before and after the round."""
    operations = prefill_flops(DecoderConfig(**results["config"]), length)
    return [
        operations / (found[f"prefill {length}"][engine] / 1e3) / 1e12 / ruler
        for found, ruler in between(results, "bf16_tflops")
        if engine in found[f"prefill {length}"]
    ]


def prefill_flops(config: DecoderConfig, length: int) -> int:
    """Operations of one prompt: products with all weights but the head's, and scores and sums of the keys that each
    position sees, itself included. The head runs at one position and is left out."""
    cost = StepCost(config)
    seen = sum(cost.attention(position) for position in range(1, length + 1))
    return 2 * cost.block_weights * length + seen


def all_rounds(results: Values) -> list[Any]:
    return [found for heat in results["heats"] for found in heat["rounds"]]


def between(results: Values, name: str) -> list[tuple[Any, float]]:
    """Each round, and the mean of the rulers on its two sides."""
    return [
        (found, (before[name] + after[name]) / 2)
        for heat in results["heats"]
        for found, before, after in zip(heat["rounds"], heat["rulers"], heat["rulers"][1:], strict=False)
    ]


def summary(results: Values) -> Values:
    """Spreads of every measure and engine, and ours beside each other one with as many bits."""
    names = list(results["engines"])
    measures = list(results["measures"])
    found: Values = {"ms": {}, "ours_is_faster": {}}
    for engine in names:
        spreads = {m: _spread(milliseconds(results, m, engine)) for m in measures}
        found["ms"][engine] = {m: one for m, one in spreads.items() if one is not None}
        if not is_ours(engine):
            ratios = {m: _spread(speed_ups(results, m, ours(engine), engine)) for m in measures}
            found["ours_is_faster"][engine] = {m: one for m, one in ratios.items() if one is not None}
    return found


def _spread(values: Sequence[float]) -> Values | None:
    return asdict(spread(values)) if values else None


def spread_of(values: Sequence[float]) -> Spread | None:
    return spread(values) if values else None


def agreement(texts: dict[str, dict[str, list[list[int]]]], many: str, one: str, count: int) -> Values:
    """Per engine how many of so many prompts have the first token of the reference, and how many of the first tokens of
    one text are the reference's; from the first that differs on, a text is another one.

    Args:
        texts: by measure and engine; `many` has several texts, `one` a long one.
    """
    reference = next((name for name in REFERENCES if name in texts.get(many, {}) and name in texts.get(one, {})), None)
    if reference is None:
        return {"reference": None, "engines": {}}
    found = {}
    for engine, theirs in texts[many].items():
        if engine not in texts[one]:
            continue
        firsts = zip(theirs, texts[many][reference], strict=True)
        text = zip(texts[one][engine][0], texts[one][reference][0], strict=True)
        found[engine] = {
            "of": count,
            "first_tokens": sum(a[0] == b[0] for a, b in list(firsts)[:count]),
            "one_text": _leading([a == b for a, b in text][:count]),
        }
    return {"reference": reference, "engines": found}


def _leading(same: Sequence[bool]) -> int:
    return next((index for index, one in enumerate(same) if not one), len(same))


def middle_ruler(results: Values, name: str) -> float:
    return median(ruler[name] for heat in results["heats"] for ruler in heat["rulers"])


def known(engine: str) -> str:
    return ENGINES[engine].title
