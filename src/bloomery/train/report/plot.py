"""Curves of runs as a picture (PNG) and as a page of its own (HTML, which needs no network). Knows no model."""

import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bloomery.disk.small import write_beside
from bloomery.errors import MissingExtra, UsageError
from bloomery.train.report.curves import Curves, Numbers
from bloomery.train.report.figures import eval_key

PANELS = (
    ("loss", "loss", "linear"),
    ("lr", "learning rate", "linear"),
    ("grad_norm", "gradient norm", "log"),
    ("tokens_per_s", "tokens/s", "linear"),
)
"""(figure, title, scale) of what every run has."""
HELD_OUT = (
    ("loss", "held out: loss"),
    ("perplexity", "held out: perplexity"),
    ("bits_per_byte", "held out: bits per byte"),
)
"""(what is measured on a held-out set, title)."""
STYLES = ("-", "--", ":", "-.")
"""Of a run's held-out sets, so that its colour stays its own."""

Series = tuple[str, int, str, Numbers, Numbers]
"""(label, the run's place, line style, x, y)."""


def plot_runs(runs: Sequence[Curves], axis: str, to: Path) -> tuple[Path, Path]:
    """Draw all runs over each other, into `to`.png and `to`.html, which replace what was there.

    Args:
        axis: step, samples, tokens or seconds.

    Raises:
        MissingExtra: matplotlib is not installed.
        UsageError: the runs do not say what is drawn, or a file cannot be written.
    """
    panels = _panels(runs, axis)
    if not panels:
        names = ", ".join(run.name for run in runs)
        raise UsageError(f"{names}: nothing to draw over {axis}: choose another --x, or another run")
    figure = _draw(panels, axis)
    if not to.name:
        raise UsageError(f"--to '{to}' is no name of a file: give one without an ending, such as curves")
    png, page = (to.with_name(f"{to.name}.{ending}") for ending in ("png", "html"))
    _replace(png, lambda out: figure.savefig(out, format="png", dpi=120))
    picture = _as_svg(figure)
    _replace(page, lambda out: out.write(_page(runs, picture[picture.index("<svg") :]).encode()))
    return png, page


def _panels(runs: Sequence[Curves], axis: str) -> list[tuple[str, str, list[Series]]]:
    """(title, scale, curves) of each panel that has any."""
    panels = []
    for key, title, scale in PANELS:
        found = [(run.name, place, STYLES[0], *run.over(axis, key)) for place, run in enumerate(runs)]
        panels.append((title, scale, [series for series in found if len(series[3])]))
    for what, title in HELD_OUT:
        held = [series for place, run in enumerate(runs) for series in _held_out(run, place, axis, what)]
        panels.append((title, "linear", held))
    return [panel for panel in panels if panel[2]]


def _held_out(run: Curves, place: int, axis: str, what: str) -> list[Series]:
    sets = _sets(run, what)
    return [
        (f"{run.name}: {name}", place, STYLES[number % len(STYLES)], *run.over(axis, key))
        for number, (name, key) in enumerate(sets)
        if len(run.over(axis, key)[0])
    ]


def _sets(run: Curves, what: str) -> list[tuple[str, str]]:
    """(held-out set, its key) of those that `what` was measured on."""
    found = [(eval_key(key), key) for key in run.values]
    return sorted((name[0], key) for name, key in found if name is not None and name[1] == what)


def _draw(panels: Sequence[tuple[str, str, list[Series]]], axis: str) -> Any:
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError:
        raise MissingExtra("matplotlib", "train") from None
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(12, 3.4 * rows), layout="constrained")
    for number, (title, scale, series) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, min(2, len(panels)), number)
        for label, place, style, x, y in series:
            dot = "." if len(x) < 20 else None
            axes.plot(x, y, style, color=f"C{place % 10}", label=_literal(label), linewidth=1.2, marker=dot)
        if scale == "log" and all(np.all(y[np.isfinite(y)] > 0) for *_, y in series):
            axes.set_yscale("log")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(axis, fontsize=8)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.tick_params(which="both", labelsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def _as_svg(figure: Any) -> str:
    from matplotlib import rc_context

    out = io.StringIO()
    # The same runs give the same page: no date, and no random names of elements.
    with rc_context({"svg.hashsalt": "bloomery"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _literal(label: str) -> str:
    """A name is no formula, as which text between dollars is drawn; one that begins with _ would not be shown."""
    return (" " if label.startswith("_") else "") + label.replace("$", r"\$")


def _page(runs: Sequence[Curves], svg: str) -> str:
    head = "<tr><th>run<th>steps<th>tokens<th>loss<th>held out<th>tok/s<th>MFU</tr>"
    rows = "\n".join(f"<tr>{''.join(f'<td>{html.escape(cell)}' for cell in _summary(run))}</tr>" for run in runs)
    style = (
        "body{font:14px system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em}"
        "table{border-collapse:collapse}td,th{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:left;"
        "vertical-align:top}svg{width:100%;height:auto}"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Training runs</title>\n'
        f"<style>{style}</style></head>\n<body><h1>Training runs</h1>\n<table>{head}\n{rows}</table>\n{svg}\n"
        f"<p>Loss and held-out figures are the last ones, tok/s and MFU medians.</p>"
        "</body></html>\n"
    )


def _summary(run: Curves) -> list[str]:
    def last(key: str, form: str) -> str:
        return form.format(run.values[key][1][-1]) if key in run.values else "–"

    def median(key: str, form: str) -> str:
        numbers = run.values[key][1] if key in run.values else np.empty(0)
        finite = numbers[np.isfinite(numbers)]
        return form.format(float(np.median(finite))) if len(finite) else "–"

    steps = max(at[-1] for at, _ in run.values.values())
    held = {what: {name: last(key, "{:.4f}") for name, key in _sets(run, what)} for what in ("loss", "bits_per_byte")}
    parts = [
        f"{name}: loss {loss}" + (f", {held['bits_per_byte'][name]} bits/byte" if name in held["bits_per_byte"] else "")
        for name, loss in held["loss"].items()
    ]
    speed = [median("tokens_per_s", "{:,.0f}"), median("mfu", "{:.1%}")]
    return [run.name, f"{steps:,.0f}", last("tokens", "{:,.0f}"), last("loss", "{:.4f}"), "; ".join(parts), *speed]


def _replace(target: Path, write: Callable[[Any], object]) -> None:
    out = io.BytesIO()
    write(out)
    try:
        write_beside(target, out.getvalue())
    except OSError as error:
        raise UsageError(f"{target} cannot be written ({error.strerror}): choose another place with --to") from None
