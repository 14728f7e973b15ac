"""The licence of a model folder, as far as its files say. Knows no law and no network."""

import re
from contextlib import suppress
from pathlib import Path

from bloomery.checkpoint.folder import Folder
from bloomery.disk.paths import contained, open_regular
from bloomery.errors import CheckpointError
from bloomery.hub import snapshots

MOST_READ = 100_000
"""Bytes of a model card: what is looked for stands at its beginning."""
TEXTS = ("LICENSE*", "LICENCE*", "license*")


def license_of(folder: Folder) -> str | None:
    """A licence's name: what the Hub said when the model was fetched, else its card, else the title of a licence file.

    None where nothing says so.
    """
    fetched = snapshots.read_marker(folder.path)
    noted = fetched.license if fetched is not None else None
    if noted is None and folder.manifest is not None:
        noted = folder.manifest.source.license
    return noted or _of_card(_text(folder.path, "README.md")) or _of_text(folder.path)


def _of_card(text: str) -> str | None:
    """`license: …` of a card's front matter; several stand in a list below."""
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    words: dict[str, list[str]] = {}
    last = ""
    for line in front.group(1).splitlines() if front else ():
        entry, item = re.match(r"(\w+):\s*(.*)", line), re.match(r"\s*-\s+(.+)", line)
        if entry:
            last = entry.group(1)
            words[last] = [entry.group(2)] if entry.group(2).strip() else []
        elif item and last:
            words[last].append(item.group(1))
    found = [word.strip().strip("\"'") for word in words.get("license", [])]
    if found == ["other"]:
        found = [word.strip().strip("\"'") for word in words.get("license_name", found)]
    return ", ".join(found) or None


def _of_text(path: Path) -> str | None:
    """The first line of a licence file that says something."""
    for file in sorted(file for pattern in TEXTS for file in path.glob(pattern)):
        lines = (line.strip(" #*=-_") for line in _text(path, file.name).splitlines())
        title = next((line for line in lines if line), None)
        if title:
            return f"{title[:80]} ({file.name})"
    return None


def _text(path: Path, name: str) -> str:
    with suppress(OSError, CheckpointError), open_regular(contained(path, name)) as file:
        return file.read(MOST_READ).decode(errors="replace")
    return ""
