"""Is a model folder what it says it is: structure, hashes, numbers. Knows no answer of the model."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bloomery.checkpoint.finite import find_flaws
from bloomery.checkpoint.folder import Folder, read_folder
from bloomery.checkpoint.quantized import scheme_of
from bloomery.checkpoint.store import open_portions
from bloomery.checkpoint.tensors import KnownTensors
from bloomery.checkpoint.write import READ_AT_ONCE, read_back
from bloomery.disk.paths import contained, open_regular
from bloomery.errors import BloomeryError, UsageError
from bloomery.hub import snapshots
from bloomery.hub.repository import RemoteFile, new_digest
from bloomery.quant.swap import weights

Moved = Callable[[int], None]


@dataclass(frozen=True)
class Check:
    """What was looked at, and what was found."""

    check: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Structure:
    """A folder as far as it could be read: None where it could not. `tensors`: whole, or of each rank."""

    check: Check
    folder: Folder | None
    tensors: tuple[KnownTensors, ...] | None


def check_structure(path: Path) -> Structure:
    """Manifest or index, sizes, headers, names, shapes and dtypes: all that is known without reading a weight."""
    folder = None
    try:
        folder = read_folder(path)
        names = weights(folder.config, scheme_of(folder))
        tensors = open_portions(folder)
        for name in names:
            tensors[0].kind(name)
    except BloomeryError as error:
        return Structure(Check("structure", False, str(error)), folder, None)
    surplus = _surplus(folder)
    if surplus:
        detail = f"{surplus[0]} is not in the manifest: remove it, or convert or fetch the store again"
        return Structure(Check("structure", False, detail), folder, tensors)
    files = f"{len(folder.weights)} file{'s' if len(folder.weights) > 1 else ''}"
    detail = f"{len(names)} tensors in {files} are as the configuration asks for"
    return Structure(Check("structure", True, detail), folder, tensors)


def _surplus(folder: Folder) -> list[Path]:
    """Weights in a store that are not in its manifest."""
    if folder.manifest is None:
        return []
    files = sorted(folder.path.glob("*.safetensors"))
    return [file for file in files if file.name not in folder.manifest.files]


def hashed_files(folder: Folder) -> dict[str, str]:
    """A folder's files and the hashes that they should have, "sha256:…" or, of small files of the Hub, "git-sha1:…".

    Raises:
        UsageError: nobody has noted any.
    """
    if folder.manifest is not None:
        return {name: f"sha256:{facts.sha256}" for name, facts in folder.manifest.files.items()}
    fetched = snapshots.read_marker(folder.path)
    if fetched is None:
        raise UsageError(f"{folder.path} has no hashes to compare with: only stores and fetched models have")
    return {file.path: file.digest for file in fetched.files}


def check_hashes(folder: Folder, moved: Moved = lambda count: None) -> Iterator[Check]:
    """Read every file, from the disk where that is possible, and compare: one check for each that differs, or one."""
    expected = hashed_files(folder)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda item: _hash(folder.path, item[0], item[1], moved), expected.items())
        wrong = [reason for reason in found if reason]
    for reason in wrong:
        yield Check("hashes", False, reason)
    if not wrong:
        yield Check("hashes", True, f"{len(expected)} files are as their hashes say")


def _hash(folder: Path, name: str, digest: str, moved: Moved) -> str:
    """What is wrong with a file; empty where nothing is."""
    try:
        file = contained(folder, name)
        if digest.startswith("sha256:"):
            size, sha256 = read_back(file)
            found = f"sha256:{sha256}"
        else:
            size = file.stat().st_size
            found = _other_hash(file, RemoteFile(name, size, digest))
    except (OSError, BloomeryError) as error:
        return f"{folder / name} cannot be read: {error}"
    moved(size)
    return "" if found == digest else f"{folder / name} has {found}, not {digest}: convert or fetch it again"


def _other_hash(path: Path, file: RemoteFile) -> str:
    digest = new_digest(file)
    with open_regular(path) as opened:
        while piece := opened.read(READ_AT_ONCE):
            digest.update(piece)
    return f"{file.digest.partition(':')[0]}:{digest.hexdigest()}"


def check_numbers(folder: Folder, tensors: Sequence[KnownTensors]) -> Iterator[Check]:
    """Read every weight: one check for each tensor that holds NaN or infinite numbers, or one."""
    wanted = weights(folder.config, scheme_of(folder))
    count = 0
    for rank, portion in enumerate(tensors):
        for flaw in find_flaws(portion, wanted):
            count += 1
            which = f", rank {rank}" if len(tensors) > 1 else ""
            yield Check("numbers", False, f"{folder.path}{which}: {flaw}")
    if not count:
        yield Check("numbers", True, f"all of {len(wanted)} tensors are finite")
