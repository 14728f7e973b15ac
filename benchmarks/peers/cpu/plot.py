"""Results as one picture: what steps of one and of many texts, and prompts, take with each engine. Knows no clock."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from peers.cpu.engines import is_ours
from peers.cpu.figures import Values, known

OURS, THEIRS = "#b5443c", "#8a97a6"


def draw(results: Values, path: Path) -> None:
    """Medians, with lines from the least to the most; shorter is better everywhere."""
    measures = [m for m in results["measures"] if any(m in one for one in results["summary"]["ms"].values())]
    if not measures:
        return
    with mpl.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(13, 7), layout="constrained")
        for axes, measure in zip(
            figure.subplots(2, -(-len(measures) // 2), squeeze=False).flat, measures, strict=False
        ):
            bars(axes, results, measure)
        model, cpu = Path(results["options"]["shape"]).stem, results["machine"]["cpu"]
        figure.suptitle(f"{model} on {cpu}, {results['threads']} threads: ms, less is better")
        figure.savefig(path, dpi=110)


def bars(axes: Axes, results: Values, measure: str) -> None:
    found = {engine: one[measure] for engine, one in results["summary"]["ms"].items() if measure in one}
    names = sorted(found, key=lambda engine: -found[engine]["median"])
    middles = [found[name]["median"] for name in names]
    below = [found[name]["median"] - found[name]["least"] for name in names]
    above = [found[name]["most"] - found[name]["median"] for name in names]
    colours = [OURS if is_ours(name) else THEIRS for name in names]
    drawn = axes.barh([known(name) for name in names], middles, xerr=(below, above), color=colours, ecolor="#444444")
    axes.bar_label(drawn, labels=[f"{value:,.1f}" for value in middles], padding=3)
    axes.margins(x=0.15)  # for the labels, which stand where the lines end
    axes.set_title(title(measure))


def title(measure: str) -> str:
    kind, count = measure.split()
    if kind == "prefill":
        return f"to the first token behind {count} tokens"
    return "a step of one text" if count == "1" else f"a step of {count} texts"
