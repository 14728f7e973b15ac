"""Fetched models on this machine: our own folders, and those in Hugging Face's cache, read only. Knows no network.

CACHE/models/ORG--NAME/COMMIT/…         the files under their names, and fetched.json, written last
CACHE/models/ORG--NAME/refs/REVISION    the commit that a branch or tag was when it was fetched
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bloomery.disk.small import as_json, write_beside
from bloomery.environment import cache_dir, hub_cache
from bloomery.errors import CheckpointError
from bloomery.hub.repository import (
    ADAPTER_WEIGHTS,
    WEIGHTS,
    Listing,
    RemoteFile,
    refuse_escape,
    shard_names,
)

MARKER, UNFINISHED = "fetched.json", ".fetching"
MAIN = "main"
FORMAT = 1
COMMIT = re.compile(r"[0-9a-f]{40,64}")


@dataclass(frozen=True)
class Fetched:
    """What fetched.json says: which commit of which model a folder holds, and whether that is all a model needs."""

    model: str
    source: str
    commit: str
    license: str | None
    complete: bool
    files: tuple[RemoteFile, ...]

    def write(self, folder: Path) -> None:
        write_beside(folder / MARKER, as_json({"format": FORMAT} | asdict(self)))


def read_marker(folder: Path) -> Fetched | None:
    """What was fetched into a folder; None where nothing was, or not to the end."""
    said = _read_object(folder / MARKER)
    if said.get("format") != FORMAT:
        return None
    try:
        files = tuple(RemoteFile(str(file["path"]), int(file["size"]), str(file["digest"])) for file in said["files"])
        for file in files:
            refuse_escape(file.path, str(folder))
        model, source, commit = (str(said[key]) for key in ("model", "source", "commit"))
        return Fetched(model, source, commit, said["license"], said["complete"] is True, files)
    except (KeyError, TypeError, ValueError, CheckpointError):
        return None


def folder_of(model: str, commit: str) -> Path:
    return _folder_of(model) / commit


def _folder_of(model: str) -> Path:
    return cache_dir() / "models" / model.replace("/", "--")


def remember_ref(model: str, revision: str | None, commit: str) -> None:
    """Note that a branch or tag is a commit, for those who have no network."""
    ref = _ref(model, revision)
    if not COMMIT.fullmatch(revision or "") and _read_line(ref) != commit:
        write_beside(ref, f"{commit}\n".encode())


def _ref(model: str, revision: str | None) -> Path:
    return _folder_of(model) / "refs" / quote(revision or MAIN, safe="")


def find(model: str, revision: str | None = None) -> Path | None:
    """The folder that holds all of a model at a revision (None: the main branch); None where there is none.

    A branch is what it was when it was last fetched.
    """
    for commit in _commits(model, revision):
        folder = folder_of(model, commit)
        marker = read_marker(folder)
        if marker is not None and marker.complete and not missing(folder, marker.files):
            return folder
        theirs = hub_snapshot(model, commit)
        if theirs.is_dir() and not _lacks(theirs):
            return theirs
    return None


def hub_snapshot(model: str, commit: str) -> Path:
    """Where huggingface_hub keeps a commit of a model."""
    return _hub_folder(model) / "snapshots" / commit


def _hub_folder(model: str) -> Path:
    return hub_cache() / f"models--{model.replace('/', '--')}"


def _commits(model: str, revision: str | None) -> Iterator[str]:
    if COMMIT.fullmatch(revision or ""):
        yield str(revision)
        return
    for ref in (_ref(model, revision), _hub_folder(model) / "refs" / (revision or MAIN)):
        commit = _read_line(ref)
        if COMMIT.fullmatch(commit):
            yield commit


def missing(folder: Path, files: Iterable[RemoteFile]) -> list[str]:
    """Names of those files that are not there in their full size."""
    return [file.path for file in files if not file.is_at(folder / file.path)]


def _lacks(folder: Path) -> list[str]:
    """What a folder of somebody else's lacks to be a model: config.json, or weights, or some of them."""
    for config, weights in (("config.json", WEIGHTS), ("adapter_config.json", tuple(("", n) for n in ADAPTER_WEIGHTS))):
        if not (folder / config).is_file():
            continue
        for index, single in weights:
            if index and (folder / index).is_file():
                with suppress(CheckpointError, OSError):
                    names = shard_names((folder / index).read_bytes(), index)
                    return [name for name in names if not (folder / name).is_file()]
                return [index]
            if (folder / single).is_file():
                return []
    return ["config.json" if not (folder / "config.json").is_file() else "weights"]


def why_not(model: str, revision: str | None) -> str:
    """In words, what is here of a model that `find` does not find."""
    begun = [file.parent for file in sorted(_folder_of(model).glob(f"*/{UNFINISHED}"))]
    for folder in [*begun, *(folder_of(model, commit) for commit in _commits(model, revision))]:
        marker = read_marker(folder)
        left = missing(folder, unfinished_files(folder) or (marker.files if marker else ()))
        if left:
            return f"{folder} lacks {_names(left)}"
    for commit in _commits(model, revision):
        theirs = hub_snapshot(model, commit)
        if theirs.is_dir():
            return f"{theirs} lacks {_names(_lacks(theirs))}"
    return f"neither {cache_dir() / 'models'} nor {hub_cache()} has it"


def _names(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def reusable(listing: Listing) -> dict[str, Path]:
    """By digest, files of other commits of the same model that have been fetched and checked."""
    found: dict[str, Path] = {}
    for marker_file in sorted(_folder_of(listing.model).glob(f"*/{MARKER}")):
        folder = marker_file.parent
        marker = read_marker(folder)
        if marker is not None and marker.commit != listing.sha:
            found |= {file.digest: folder / file.path for file in marker.files if file.is_at(folder / file.path)}
    return found


def write_begun(folder: Path, listing: Listing, files: Iterable[RemoteFile]) -> None:
    """Note what is being fetched into a folder. Into the file as it is: it is locked, another would not be."""
    names = [{"path": file.path, "size": file.size} for file in files]
    said = {"model": listing.model, "commit": listing.sha, "files": names}
    (folder / UNFINISHED).write_text(json.dumps(said), encoding="utf-8")


def held_by(folder: Path) -> tuple[str, str] | None:
    """Model and commit that a folder was filled from, or was being filled from; None where it is not ours."""
    for file in (MARKER, UNFINISHED):
        said = _read_object(folder / file)
        if isinstance(said.get("model"), str) and isinstance(said.get("commit"), str):
            return said["model"], said["commit"]
    return None


def unfinished_files(folder: Path) -> tuple[RemoteFile, ...]:
    """The files that a fetch into this folder was after when it ended; empty where none was, or nobody knows."""
    with suppress(KeyError, TypeError, ValueError):
        said = _read_object(folder / UNFINISHED)["files"]
        return tuple(RemoteFile(str(file["path"]), int(file["size"]), "") for file in said)
    return ()


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_line(file: Path) -> str:
    with suppress(OSError, ValueError):
        return file.read_text(encoding="utf-8").strip()
    return ""
