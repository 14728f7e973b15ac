"""The picture shows the curves of all runs; the page needs nothing but itself."""

import html.parser
import os
import re
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bloomery.errors import MissingExtra, UsageError
from bloomery.train.report.curves import Curves
from bloomery.train.report.plot import _draw, _panels, plot_runs

STEPS = np.arange(1.0, 31.0)


def curves(name: str = "out/run", **more: np.ndarray) -> Curves:
    values = {"loss": 5 - STEPS / 10, "lr": 1 / STEPS, "grad_norm": 1 + STEPS, "tokens_per_s": 100 * STEPS} | more
    return Curves(name, {key: (STEPS[: len(numbers)], numbers) for key, numbers in values.items()})


HELD_OUT = {
    "eval/valid/loss": np.array([4.0, 3.0]),
    "eval/news/loss": np.array([5.0, 4.5]),
    "eval/valid/bits_per_byte": np.array([2.0, 1.75]),
}


class Page(html.parser.HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_each_figure_has_a_panel_with_a_line_of_each_run() -> None:
    runs = [curves("a", **HELD_OUT), curves("b")]
    drawn = _draw(_panels(runs, "step"), "step")
    by_title = {axes.get_title(): axes for axes in drawn.axes}
    titles = ["loss", "learning rate", "gradient norm", "tokens/s", "held out: loss", "held out: bits per byte"]
    assert list(by_title) == titles
    labels = {title: [line.get_label() for line in axes.lines] for title, axes in by_title.items()}
    assert labels["loss"] == ["a", "b"]
    assert labels["held out: loss"] == ["a: news", "a: valid"]
    first = by_title["loss"].lines[0]
    assert np.array_equal(first.get_xdata(), STEPS)
    assert np.array_equal(first.get_ydata(), 5 - STEPS / 10)
    assert np.array_equal(by_title["held out: loss"].lines[1].get_ydata(), [4.0, 3.0])


def test_both_files_are_whole(tmp_path: Path) -> None:
    png, page = plot_runs([curves(**HELD_OUT)], "step", tmp_path / "new" / "v1.2")
    assert (png.name, page.name) == ("v1.2.png", "v1.2.html")
    with Image.open(png) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert sorted(path.name for path in png.parent.iterdir()) == ["v1.2.html", "v1.2.png"]
    assert stat.S_IMODE(os.stat(page).st_mode) == 0o644


def test_the_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    _, file = plot_runs([curves(**HELD_OUT)], "step", tmp_path / "plot")
    page = Page(file.read_text(encoding="utf-8"))
    assert "svg" in page.tags
    assert not {"script", "link", "img", "iframe", "image"} & set(page.tags)
    fetched = [value for name, value in page.attributes if name.split(":")[-1] in ("href", "src", "data", "action")]
    assert all(value.startswith("#") for value in fetched)
    assert not re.search(r"url\((?!#)", file.read_text(encoding="utf-8"))
    assert "valid: loss 3.0000, 1.7500 bits/byte" in page.text


def test_a_name_is_shown_as_it_is(tmp_path: Path) -> None:
    name = r"_out/<b>a&$\nonsense{$"  # between dollars matplotlib reads a formula, and this is none
    _, file = plot_runs([curves(name)], "step", tmp_path / "plot")
    page = Page(file.read_text(encoding="utf-8"))
    assert "b" not in page.tags
    assert name in page.text
    drawn = _draw(_panels([curves(name)], "step"), "step")
    assert drawn.axes[0].get_legend().get_texts()


def test_the_same_runs_give_the_same_files(tmp_path: Path) -> None:
    both = [[file.read_bytes() for file in plot_runs([curves()], "step", tmp_path / name)] for name in ("a", "b")]
    assert both[0] == both[1]


def test_numbers_that_are_not_finite_are_drawn_as_gaps(tmp_path: Path) -> None:
    broken = np.where(STEPS == 7, np.nan, STEPS)
    zero = np.zeros_like(STEPS)  # has no logarithm
    for norm, scale in ((zero, "linear"), (broken, "log")):
        runs = [curves(loss=broken, grad_norm=norm), curves("b", grad_norm=broken)]
        drawn = _draw(_panels(runs, "step"), "step")
        assert {axes.get_title(): axes.get_yscale() for axes in drawn.axes}["gradient norm"] == scale
        plot_runs(runs, "step", tmp_path / "plot")


def test_what_no_run_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"out/run: nothing to draw over tokens"):
        plot_runs([curves()], "tokens", tmp_path / "plot")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"plot\.png cannot be written .*--to"):
        plot_runs([curves()], "step", tmp_path / "file" / "plot")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"bloomery\[train\]"):
        plot_runs([curves()], "step", tmp_path / "plot")
