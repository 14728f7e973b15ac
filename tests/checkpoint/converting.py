"""Run by test_convert.py in a process of its own: converts, and stops at a given place to be killed there.

    converting.py SOURCE TARGET JOBS TP PLACE [SCHEME]

PLACE is "tensor:5" (before the fifth tensor is read), "folder" (before the files beside the weights are written),
"rename" (before the store takes its place), "renamed" (after it has), "thread" (in a thread that writes) or "end".
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bloomery.checkpoint import convert as converter
from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.origin import origin_of
from bloomery.checkpoint.store import open_tensors
from bloomery.checkpoint.tensors import KnownTensors
from bloomery.quant.scheme import scheme_named


def stop() -> None:
    """Say so, and never go on."""
    print("stopped", flush=True)
    time.sleep(600)


class Stopping:
    """Tensors of which one cannot be read."""

    def __init__(self, tensors: KnownTensors, number: int) -> None:
        self.tensors, self.left = tensors, number

    def read(self, name: str) -> Any:
        self.left -= 1
        if self.left == 0:
            stop()
        return self.tensors.read(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensors, name)


def reopened(path: Path, number: int) -> Stopping:
    return Stopping(open_tensors(read_folder(path)), number)


def stopping_before(call: Callable[..., Any]) -> Callable[..., Any]:
    def stopped(*arguments: Any) -> Any:
        stop()
        return call(*arguments)

    return stopped


def stopping_after(call: Callable[..., Any]) -> Callable[..., Any]:
    def stopped(*arguments: Any) -> None:
        call(*arguments)
        stop()

    return stopped


def main(source: str, target: str, jobs: str, tp: str, place: str, scheme: str = "none") -> None:
    folder = read_folder(Path(source))
    origin = origin_of(folder, source)
    number = int(place.partition(":")[2] or -1)
    if place == "folder":
        converter.write_bytes = stopping_before(converter.write_bytes)
    if place == "rename":
        converter.trade_places = stopping_before(converter.trade_places)
    if place == "renamed":
        converter.trade_places = stopping_after(converter.trade_places)
    object.__setattr__(origin, "tensors", Stopping(origin.tensors, number))
    object.__setattr__(origin, "reopen", partial(reopened, folder.path, 2 if place == "thread" else -1))
    converter.convert(origin, Path(target), jobs=int(jobs), tp=int(tp), file_bytes=6_000, scheme=scheme_named(scheme))


if __name__ == "__main__":
    main(*sys.argv[1:])
