"""What a repository of the Hub holds, and which of its files make a model: names, sizes, digests. Knows no network."""

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bloomery.errors import CheckpointError, UsageError

WEIGHTS = (("model.safetensors.index.json", "model.safetensors"), ("pytorch_model.bin.index.json", "pytorch_model.bin"))
"""Index and single file of each kind of weights, in order of preference: never both kinds."""
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

BESIDE_WEIGHTS = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.*",
    "README.md",
    "LICEN[CS]E*",
    "license*",
    "NOTICE*",
    "USE_POLICY*",
)
OUR_NAMES = ("fetched.json", ".fetching")
"""Files that we put into a fetched folder ourselves."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub lists it. `digest` is "sha256:…" of large files, "git-sha1:…" of those that git holds."""

    path: str
    size: int
    digest: str

    def is_at(self, place: Path) -> bool:
        """Whether it is there in its full size, under a name that a file only gets once it is checked."""
        with suppress(OSError):
            return place.stat().st_size == self.size
        return False


@dataclass(frozen=True)
class Listing:
    """One revision of a repository. `sha` names it for ever; `license` and `terms` (its address) may be unknown."""

    model: str
    sha: str
    files: tuple[RemoteFile, ...]
    license: str | None = None
    terms: str | None = None
    gated: bool = False

    def file(self, path: str) -> RemoteFile | None:
        return next((file for file in self.files if file.path == path), None)


def new_digest(file: RemoteFile) -> Any:
    """A hash object for a file's content, of the kind its digest is."""
    if file.digest.startswith("sha256:"):
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def digest_of(file: RemoteFile, content: bytes) -> str:
    """The digest of a content that is meant to be a file's, written as the file's is."""
    digest = new_digest(file)
    digest.update(content)
    return f"{file.digest.partition(':')[0]}:{digest.hexdigest()}"


def choose(listing: Listing, include: tuple[str, ...], read: Callable[[RemoteFile], bytes]) -> tuple[RemoteFile, ...]:
    """The files to fetch: those that match `include`, or where it is empty those that make the model.

    Args:
        read: gives the content of an index, which says in which files the weights are.

    Raises:
        UsageError: a pattern matches nothing, or there are no weights that can be read.
        CheckpointError: a file's name leads out of the folder, or an index names what is not there.
    """
    chosen = _included(listing, include) if include else _model(listing, read)
    for file in chosen:
        refuse_escape(file.path, listing.model)
    return tuple(dict.fromkeys(chosen))


def refuse_escape(path: str, model: str) -> None:
    """A server's name for a file must stay within the folder, on every system.

    Raises:
        CheckpointError: it does not, or it is a name that we use ourselves.
    """
    parts = path.split("/")
    escapes = any(part in ("", ".", "..") for part in parts) or re.search(r"[\\\x00-\x1f\x7f]", path)
    if escapes or path in OUR_NAMES or path.endswith((".part", ".part.json")):
        raise CheckpointError(f"{model} has a file named {path!r}, which is not safe to write: do not trust it")


def _included(listing: Listing, include: tuple[str, ...]) -> list[RemoteFile]:
    chosen = []
    for pattern in include:
        found = [file for file in listing.files if fnmatchcase(file.path, pattern)]
        if not found:
            near = get_close_matches(pattern, [file.path for file in listing.files], 1)
            hint = f"did you mean '{near[0]}'?" if near else "look at its files on the Hub"
            raise UsageError(f"{listing.model} has no file that matches --include '{pattern}': {hint}")
        chosen += found
    return chosen


def _model(listing: Listing, read: Callable[[RemoteFile], bytes]) -> list[RemoteFile]:
    weights = _weights(listing, read)
    adapter = next((file for file in map(listing.file, ADAPTER_WEIGHTS) if file is not None), None)
    has_config = listing.file("config.json") is not None
    has_adapter = adapter is not None and listing.file("adapter_config.json") is not None
    if not (weights and has_config) and not has_adapter:
        others = sorted({file.path.rpartition(".")[2] for file in listing.files if "/" not in file.path})
        what = "weights as model.safetensors or pytorch_model.bin" if has_config else "config.json"
        raise UsageError(
            f"{listing.model} has no {what} (its files: {', '.join(others[:12])}): choose another repository, "
            "or take files as they are with --include"
        )
    beside = [file for file in listing.files if any(fnmatchcase(file.path, name) for name in BESIDE_WEIGHTS)]
    beside = [file for file in beside if "/" not in file.path]
    return [*beside, *weights, *([adapter] if adapter is not None and has_adapter else [])]


def _weights(listing: Listing, read: Callable[[RemoteFile], bytes]) -> list[RemoteFile]:
    for index, single in WEIGHTS:
        listed, alone = listing.file(index), listing.file(single)
        if listed is not None:
            return [listed, *_shards(listing, listed, read(listed))]
        if alone is not None:
            return [alone]
    return []


def _shards(listing: Listing, index: RemoteFile, content: bytes) -> list[RemoteFile]:
    where = f"{listing.model}: {index.path}"
    shards = []
    for name in shard_names(content, where):
        file = listing.file(name)
        if file is None:
            raise CheckpointError(f"{where} names '{name}', which is not in the repository: choose another revision")
        shards.append(file)
    return shards


def shard_names(index: bytes, where: str) -> list[str]:
    """The files that an index names, in order.

    Raises:
        CheckpointError: it is no index.
    """
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        names = json.loads(index)["weight_map"].values()
        if names and all(isinstance(name, str) for name in names):
            return sorted(set(names))
    raise CheckpointError(f"{where} has no weight_map: fetch it again, or choose another revision")
