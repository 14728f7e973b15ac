"""Which models are on this machine without a network: built-in and fetched. Knows nothing of what is in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bloomery.environment import cache_dir, hub_cache
from bloomery.hub import snapshots
from bloomery.hub.resolve import BUILT_IN


class LocalModel(NamedTuple):
    """A model by the name that every verb takes; `revision` is a commit of the Hub."""

    name: str
    revision: str | None
    path: Path
    size: int  # bytes of all its files


def local_models() -> Iterator[LocalModel]:
    """Built-in ones, those that were fetched to the end, and those of Hugging Face's own cache."""
    for name, path in BUILT_IN.items():
        yield LocalModel(name, None, path, _size(path))
    for marker in sorted((cache_dir() / "models").glob(f"*/*/{snapshots.MARKER}")):
        fetched = snapshots.read_marker(marker.parent)
        if fetched is not None and fetched.complete:
            yield LocalModel(fetched.model, fetched.commit, marker.parent, _size(marker.parent))
    for config in sorted(hub_cache().glob("models--*/snapshots/*/config.json")):
        path = config.parent
        name = path.parent.parent.name.removeprefix("models--").replace("--", "/")
        if snapshots.COMMIT.fullmatch(path.name) and snapshots.find(name, path.name) == path:
            yield LocalModel(name, path.name, path, _size(path))


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
