"""`bloomery train plot`: the curves of training runs, as a picture and as a page."""

from pathlib import Path

from bloomery.cli.options import PlotOptions
from bloomery.errors import UsageError
from bloomery.train.report.curves import read_curves
from bloomery.train.report.plot import plot_runs


def run(options: PlotOptions) -> int:
    """Draw, and print the names of both files."""
    if not options.runs:
        raise UsageError("no run: give the folder of a training run, such as bloomery train plot out/dickens")
    folders = [Path(run) for run in options.runs]
    to = options.to or _place(folders)
    for file in plot_runs([read_curves(folder) for folder in folders], options.x, to):
        print(file)
    return 0


def _place(folders: list[Path]) -> Path:
    if len(folders) > 1:
        return Path("plot")
    return (folders[0] if folders[0].is_dir() else folders[0].parent) / "plot"
