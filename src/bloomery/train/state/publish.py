"""The step folders of a run: they appear whole, are checked before they are believed, and the old ones go. Knows no
tensor.

`latest` is moved last and has the last word: a folder that it does not name is used only where those it does are bad.
"""

import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bloomery.checkpoint import manifest
from bloomery.checkpoint.folder import read_json
from bloomery.checkpoint.latest import LATEST, named_latest, refuse_folder, step_name, step_of
from bloomery.checkpoint.manifest import FORMAT, FileFacts, Manifest, parse_manifest
from bloomery.checkpoint.write import read_back, write_bytes
from bloomery.disk.lock import only_writer
from bloomery.disk.paths import contained
from bloomery.disk.place import refuse_without_room, sync_folder, trade_places
from bloomery.errors import CheckpointError, UsageError
from bloomery.log import logger

PART = "bloomery-training-part"
"""Format of a manifest whose tensors are not a whole model: those that are trained beside a frozen one."""
UNFINISHED = ".tmp"
"""Ends the name of a step folder that is being written or removed."""


@dataclass(frozen=True)
class Whole:
    """A step folder of which every byte has been read and is as its manifest says. `is_model`: it is a store, too."""

    path: Path
    manifest: Manifest
    is_model: bool


class Steps:
    """The step folders in one folder, of which the `keep` newest are kept.

    Raises:
        CheckpointError: a folder is where `latest` should be.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        refuse_folder(folder)
        self._bad: set[Path] = set()

    def publish(self, step: int, size: int, write: Callable[[Path], None]) -> Path:
        """Have a step folder written, and put it in its place when the disk has it.

        Args:
            size: bytes that it will have, about.
            write: fills the folder it is given.

        Raises:
            CheckpointError: the disk does not take it. What was there before is unchanged.
            UsageError: another process is writing here.
        """
        target = self.folder / step_name(step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with only_writer(self.folder / ".lock", self._refuse):
                self._sweep()
                fresh = target.with_name(target.name + UNFINISHED)
                fresh.mkdir()
                try:
                    refuse_without_room(fresh, size)
                    write(fresh)
                    sync_folder(fresh)
                    trade_places(fresh, target)
                finally:
                    shutil.rmtree(fresh, ignore_errors=True)
                sync_folder(self.folder)
                self._point(target)
                self._remove_old(step)
        except OSError as error:
            raise CheckpointError(
                f"{target} cannot be written ({error}): make room or choose another folder; the run is as it was, and "
                "so are its earlier checkpoints"
            ) from error
        return target

    def newest(self) -> Whole | None:
        """The one to go on from: the one that `latest` names, or where that is bad, the best that is left. What was
        wrong with those before it is said on stderr. None where there is none at all.

        Raises:
            CheckpointError: there are some, and none is whole.
        """
        wrong = []
        for path in self._candidates():
            try:
                found = check_folder(path)
            except CheckpointError as error:
                logger.warning("%s: this checkpoint is not used", error)
                self._bad.add(path)
                wrong.append(str(error))
            else:
                if wrong:
                    logger.warning("using %s instead", path)
                return found
        if wrong:
            raise CheckpointError(
                f"{self.folder} has no checkpoint that is whole ({wrong[0]}): put one back, or begin anew"
            )
        return None

    def _candidates(self) -> list[Path]:
        """Step folders in the order in which they are wanted: the latest, those before it, and then those after it,
        which were published and never named, or left behind when the run went back."""
        found = sorted(self._there(), reverse=True)
        try:
            latest = named_latest(self.folder)
        except CheckpointError as error:
            logger.warning("%s: taking the newest", error)
            latest = None
        if latest is None:
            return [path for _, path in found]
        if not latest.is_dir():
            logger.warning("%s names %s, which is not there", self.folder / LATEST, latest.name)
        last = step_of(latest)
        assert last is not None
        return [path for step, path in found if step <= last] + [path for step, path in found if step > last]

    def _there(self) -> list[tuple[int, Path]]:
        paths = list(self.folder.iterdir()) if self.folder.is_dir() else []
        return [(step, path) for path in paths if (step := step_of(path)) is not None and path.is_dir()]

    def _point(self, target: Path) -> None:
        fresh = self.folder / f"{LATEST}{UNFINISHED}"
        write_bytes(fresh, f"{target.name}\n".encode())
        fresh.replace(self.folder / LATEST)
        sync_folder(self.folder)

    def _remove_old(self, step: int) -> None:
        """All but the newest up to this step. Later ones are of a past that the run has left."""
        self._bad.discard(self.folder / step_name(step))
        past = sorted((there, path) for there, path in self._there() if there <= step and path not in self._bad)
        kept = {path for _, path in past[-self.keep :]}
        for there, path in sorted(self._there()):
            if path in kept:
                continue
            if there > step or path in self._bad:
                reason = "damaged" if path in self._bad else f"later than step {step}, which the run went on from"
                logger.warning("%s is removed: it is %s", path, reason)
            gone = path.with_name(path.name + UNFINISHED)
            path.rename(gone)  # one that is half removed must not look like one
            shutil.rmtree(gone, ignore_errors=True)
            self._bad.discard(path)

    def _sweep(self) -> None:
        """What a killed process left."""
        for path in self.folder.glob(f"step-*{UNFINISHED}"):
            shutil.rmtree(path)

    def _refuse(self) -> None:
        raise UsageError(f"another process is saving into {self.folder}: two runs cannot share a folder")


def check_folder(path: Path) -> Whole:
    """Read every byte of a step folder and compare it with its manifest.

    Raises:
        CheckpointError: says what is missing, cut off or changed.
    """
    found, is_model = read_manifest(path)
    for name, facts in found.files.items():
        _check_size(contained(path, name), facts)
    surplus = sorted({file.name for file in path.glob("*.safetensors")} - set(found.files))
    if surplus:
        raise CheckpointError(f"{path / surplus[0]} is none of the checkpoint's files")
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(lambda item: _check_hash(path / item[0], item[1]), found.files.items()))
    return Whole(path, found, is_model)


def read_manifest(path: Path) -> tuple[Manifest, bool]:
    """What a step folder says of itself, and whether it is of a whole model.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    file = path / manifest.NAME
    if not file.exists():
        raise CheckpointError(f"{file} is missing, which is written last: the checkpoint was never finished")
    try:
        said = read_json(file)
        known = [parse_manifest(file, said, kind) for kind in (FORMAT, PART)]
    except CheckpointError as error:  # whose remedies are those of a model that can be had again
        raise CheckpointError(re.sub(r": (convert or )?fetch [a-z ]+again$", "", str(error))) from None
    found = known[0] or known[1]
    if found is None:
        raise CheckpointError(f"{file} is not one of a checkpoint")
    return found, known[0] is not None


def _check_size(file: Path, facts: FileFacts) -> None:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror})") from None
    if size != facts.size:
        raise CheckpointError(f"{file} has {size:,} bytes of {facts.size:,}")


def _check_hash(file: Path, facts: FileFacts) -> None:
    try:
        found = FileFacts(*read_back(file))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror or error})") from None
    if found != facts:
        raise CheckpointError(f"{file} has changed since it was written: its sha256 is {found.sha256}")
