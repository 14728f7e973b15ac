"""How a folder appears: written beside its place, then put into it in one step. Knows nothing of what is in it."""

import ctypes
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time

from bloomery.disk.lock import held, is_abandoned
from bloomery.errors import CheckpointError, UsageError
from bloomery.progress import as_size

UNFINISHED = ".unfinished"


class Resumable(CheckpointError):
    """What may go well at the next attempt, so that finished files are worth keeping."""


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place when the block ends well and vanishes when it does not.

    What a killed process left of such a folder goes, too.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in _left_behind(target):
        shutil.rmtree(left, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=UNFINISHED, dir=target.parent))
    try:
        with held(fresh):
            yield fresh
            fresh.chmod(0o755)
            trade_places(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _left_behind(target: Path) -> list[Path]:
    """Folders of killed processes. One that is a moment old may not be held yet by the process that makes it."""
    found = target.parent.glob(f".{glob.escape(target.name)}.*{UNFINISHED}")
    return [left for left in found if left.is_dir() and time() - left.stat().st_mtime > 60 and is_abandoned(left)]


def refuse_fixed(target: Path) -> None:
    """Refuse a folder whose place no other can take, before anything is written.

    Raises:
        UsageError: it is a mount point, or the current folder or above it, which would vanish under whoever is there.
    """
    if target.is_mount():
        raise UsageError(f"{target} is a mount point, and no folder can take its place: name a folder in it")
    if Path.cwd().is_relative_to(target):
        raise UsageError(f"{target} is where you stand, and another folder would take its place: name a folder in it")


def trade_places(fresh: Path, target: Path) -> None:
    """Put `fresh` where `target` is, and what was there, if anything, where `fresh` was."""
    if not target.exists():
        fresh.rename(target)
    elif not _exchange(fresh, target):
        old = fresh.with_name(fresh.name + ".old")
        target.rename(old)
        try:
            fresh.rename(target)
        except BaseException:
            old.rename(target)
            raise
        old.rename(fresh)


def _exchange(one: Path, other: Path) -> bool:
    """Linux can swap two names in one step, so that there is no moment without a folder; not on every file system."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, TypeError):
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), swap) == 0)


def sync_folder(folder: Path) -> None:
    """Have the disk keep a folder's names: what was renamed in it would else be lost with the power."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def refuse_without_room(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot take.

    Raises:
        Resumable: says how many bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Resumable(
            f"{as_size(needed)} are still to be written and {folder.parent} has {as_size(free)} free: make room, or "
            "choose another place"
        )
