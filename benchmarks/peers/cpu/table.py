"""Results as Markdown tables. Knows no engine's code and no clock."""

from pathlib import Path
from typing import Any

from peers.cpu.engines import ENGINES, ours
from peers.cpu.figures import Values, known, middle_ruler
from peers.cpu.goals import Reached, reached
from peers.cpu.rounds import PROMPT

from bloomery.bench.spread import Spread


def as_tables(results: Values) -> str:
    parts = (heading(results), engines(results), speeds(results), ratios(results), goals(results), notes(results))
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def heading(results: Values) -> list[str]:
    machine, options = results["machine"], results["options"]
    read, products = middle_ruler(results, "gb_per_s"), middle_ruler(results, "bf16_tflops")
    said = (
        f"{machine['cpu']}, {results['threads']} threads",
        f"{Path(options['shape']).stem}, random weights",
        f"{options['rounds']} rounds, {options['steps']} decoding steps behind {PROMPT} tokens",
        f"read bandwidth {read:.1f} GB/s, products of torch in bf16 {products:.3f} TFLOP/s",
    )
    return [" · ".join(said)]


def engines(results: Values) -> list[str]:
    lines = [
        "| engine | load s | load + first tokens s | peak MB | first tokens as | one text as |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    agreed = results["agreement"]
    for engine, one in results["engines"].items():
        first = one.get("first_s")
        same = agreed["engines"].get(engine)
        cells = [
            known(engine),
            f"{one['load_s']:.2f}",
            "–" if first is None else f"{one['load_s'] + first:.2f}",
            f"{one['peak_bytes'] / 1e6:,.0f}" if "peak_bytes" in one else "–",
            "–" if same is None else f"{same['first_tokens']} of {same['of']}",
            "–" if same is None else f"{same['one_text']} of {same['of']}",
        ]
        lines.append(row(cells))
    reference = agreed["reference"]
    if reference is not None:
        lines = [line.replace(" as |", f" as {known(reference)} |") for line in lines]
    return lines


def speeds(results: Values) -> list[str]:
    """Decoding in ms a step, reading prompts in tokens a second: medians, with the least and the most."""
    measures = list(results["measures"])
    heads = [f"{m}, ms" if m.startswith("decode") else f"{m}, tok/s" for m in measures]
    lines = [row(["engine", *heads]), "|---|" + "--:|" * len(measures)]
    for engine, found in results["summary"]["ms"].items():
        cells = []
        for measure in measures:
            one = found.get(measure)
            if one is None:
                cells.append("–")
            elif measure.startswith("decode"):
                cells.append(span(one["median"], one["least"], one["most"], "{:.1f}"))
            else:
                tokens = 1e3 * results["measures"][measure]["prompt_length"]
                values = (tokens / one[name] for name in ("median", "most", "least"))
                cells.append(span(*values, "{:,.0f}"))
        lines.append(row([known(engine), *cells]))
    return lines


def ratios(results: Values) -> list[str]:
    """How many times as fast ours is: medians of the rounds' own ratios, with the least and the most."""
    measures = list(results["measures"])
    found = {engine: one for engine, one in results["summary"]["ours_is_faster"].items() if one}
    if not found:
        return []
    lines = [row(["ours, how many times as fast", *measures]), "|---|" + "--:|" * len(measures)]
    for engine, one in found.items():
        title = f"{known(ours(engine))} beside {known(engine)}"
        lines.append(row([title, *(cell(one.get(measure), "{:.2f}") for measure in measures)]))
    return lines


def goals(results: Values) -> list[str]:
    lines = ["| goal | wanted | reached | |", "|---|--:|--:|---|"]
    return lines + [goal_row(one) for one in reached(results)]


def goal_row(one: Reached) -> str:
    wanted = f"{'≥' if one.goal.at_least else '≤'} {one.goal.bound:.2f}"
    if one.spread is None:
        return row([one.goal.title, wanted, "not measured", ""])
    value = span(*_three(one.spread), "{:.2f}")
    return row([one.goal.title, wanted, value, "yes" if one.met else "no"])


def notes(results: Values) -> list[str]:
    lines = [f"- {ENGINES[engine].title} is left out: {why}" for engine, why in results["left_out"].items()]
    for heat in results["heats"]:
        rulers = ", ".join(f"{r['gb_per_s']:.1f} GB/s and {r['bf16_tflops']:.3f} TFLOP/s" for r in heat["rulers"])
        lines.append(f"- the machine before, between and after the rounds: {rulers}")
    versions: dict[str, str] = {}
    for one in results["engines"].values():
        versions |= one["versions"]
    return [*lines, "- " + ", ".join(f"{name} {version}" for name, version in versions.items())]


def cell(one: dict[str, Any] | None, form: str) -> str:
    return "–" if one is None else span(one["median"], one["least"], one["most"], form)


def span(middle: float, least: float, most: float, form: str) -> str:
    return f"{form.format(middle)} ({form.format(least)}–{form.format(most)})"


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _three(spread: Spread) -> tuple[float, float, float]:
    return spread.median, spread.least, spread.most
