"""Which folders a written model may take the place of. Knows no tensor.

What is replaced is gone, so a folder is only replaced by what it looks like, and only where nothing else is in it.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from bloomery.disk.place import refuse_fixed
from bloomery.errors import UsageError
from bloomery.hub.repository import BESIDE_WEIGHTS, OUR_NAMES

GIT = ".gitattributes"


def refuse_others(target: Path, kind: str, weights: Sequence[str], sign: tuple[str, bytes]) -> None:
    """Refuse to replace anything but an empty folder or a model's.

    Args:
        kind: what will be there, in words: "store".
        weights: the names that files of weights and their descriptions have there, as patterns.
        sign: a file that such a folder has, and what is written in it. Without it files of weights are enough.

    Raises:
        UsageError: says what is there and would be lost.
    """
    refuse_fixed(target)
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file, so is no {kind}: name a folder")
    files = sorted(target.iterdir())
    name, word = sign
    described = target / name
    looks_so = described.is_file() and word in described.read_bytes()
    if files and not looks_so and not any(_is_one(file, weights) for file in files):
        raise UsageError(f"{target} is there and is no {kind}: choose a new or an empty folder")
    for file in files:
        if file.is_dir() or not _is_one(file, (*BESIDE_WEIGHTS, *OUR_NAMES, *weights, GIT, name)):
            raise UsageError(f"{file} would be lost if a {kind} took this place: move it away, or choose a new folder")


def _is_one(file: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(file.name, pattern) for pattern in patterns)
