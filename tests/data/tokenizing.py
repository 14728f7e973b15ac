"""Run by test_tokenize.py in a process of its own: tokenizes, and stops at a given place to be killed there.

    tokenizing.py TOKENIZER FOLDER PREFIX JOBS PLACE

PLACE is "shard:3" (when three shards are done), "half:3" (the third shard's tokens are written and not in the journal),
"publish:1" (before the first file is put into place) up to 3, or "published" (all are, and the folder is still there).
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bloomery.data import documents, unfinished
from bloomery.data.documents import find_files
from bloomery.data.tokenize import tokenize
from bloomery.data.unfinished import Totals

SHARD_BYTES = 200


def stop() -> None:
    """Say so, and never go on."""
    print("stopped", flush=True)
    time.sleep(600)


class StoppingOs:
    """The module os, of which one call never comes back."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.left = name, number

    def __getattr__(self, name: str) -> Any:
        if name == self.name:
            self.left -= 1
            if self.left == 0:
                stop()
        return getattr(os, name)


def main(tokenizer: str, folder: str, prefix: str, jobs: str, place: str) -> None:
    documents.SHARD_BYTES = SHARD_BYTES
    kind, _, number = place.partition(":")
    if kind == "half":  # two of these calls a shard
        unfinished.os = StoppingOs("fsync", 2 * int(number))
    if kind == "publish":
        unfinished.os = StoppingOs("replace", int(number))
    if kind == "published":
        unfinished.shutil.rmtree = lambda *_, **__: stop()

    def moved(size: int, totals: Totals) -> None:
        if kind == "shard" and totals.shards == int(number):
            stop()

    files = find_files("x", [folder])
    tokenize(files, Path(prefix), Tokenizer.from_file(tokenizer), eod=2, jobs=int(jobs), moved=moved)


if __name__ == "__main__":
    main(*sys.argv[1:])
