"""A model folder as the origin of a store: which files go along, where the model came from. Knows no network."""

from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from bloomery.checkpoint.convert import Origin
from bloomery.checkpoint.folder import Folder, read_folder
from bloomery.checkpoint.manifest import Source
from bloomery.checkpoint.quantized import refuse_quantized
from bloomery.checkpoint.store import open_tensors
from bloomery.checkpoint.tensors import KnownTensors
from bloomery.disk.paths import contained
from bloomery.hub import snapshots
from bloomery.hub.repository import BESIDE_WEIGHTS


def origin_of(folder: Folder, name: str) -> Origin:
    """A model folder as `convert` wants it.

    Args:
        name: the folder or the model of the Hub, as it was asked for.

    Raises:
        UsageError: the folder's weights are packed.
        CheckpointError: a tensor or a file is not as it should be.
    """
    refuse_quantized(folder, "be converted")
    files = beside_weights(folder.path)
    return Origin(
        family=folder.family.name,
        config=folder.config,
        source=source_of(folder, name),
        tensors=open_tensors(folder),
        reopen=partial(_reopen, folder.path.resolve()),
        files=files,
        identity=[_facts(file) for file in (*folder.weights, *files.values())],
    )


def source_of(folder: Folder, name: str) -> Source:
    """Where a model's numbers were first had from, as far as the folder knows."""
    if folder.manifest is not None:
        return folder.manifest.source
    fetched = snapshots.read_marker(folder.path)
    if fetched is not None:
        return Source(name=fetched.model, revision=fetched.commit, license=fetched.license)
    real = folder.path.resolve()  # huggingface_hub names a folder by its commit
    is_commit = real.parent.name == "snapshots" and snapshots.COMMIT.fullmatch(real.name) is not None
    return Source(name=name, revision=real.name if is_commit else None)


def beside_weights(path: Path) -> dict[str, Path]:
    """The files of a model folder that are no weights and go with them: configuration, tokenizer, card, licence.

    Raises:
        CheckpointError: one of them lies elsewhere.
    """
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    return {name: contained(path, name) for name in names if any(fnmatchcase(name, kind) for kind in BESIDE_WEIGHTS)}


def _reopen(path: Path) -> KnownTensors:
    return open_tensors(read_folder(path))


def _facts(file: Path) -> list[str | int]:
    facts = file.stat()
    return [str(file.resolve()), facts.st_size, facts.st_mtime_ns]
