"""Which files of a folder that is being written are finished, so that a later run can go on. Knows no tensor."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bloomery.checkpoint.write import Written, write_bytes
from bloomery.log import logger

NAME = "convert.jsonl"


class Journal:
    """Finished files of a folder, which is made where there is none.

    Args:
        plan: what is being written, from what; another one begins anew.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self.folder, self.plan = folder, json.loads(json.dumps(plan))
        done = self._read()
        self.done: dict[str, Written] = done or {}
        if done is None:
            if folder.exists():
                logger.info("%s is of another conversion: starting anew", folder)
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            self._write()
        self.sweep()

    def sweep(self) -> None:
        """Remove files that were begun and not finished."""
        for file in self.folder.iterdir():
            if file.name not in self.done and file.name != NAME:
                file.unlink()

    def add(self, file: str, written: Written) -> None:
        """Note a finished file, which the disk has."""
        self.done[file] = written
        with (self.folder / NAME).open("a", encoding="utf-8") as journal:
            journal.write(_line(file, written))
            journal.flush()
            os.fsync(journal.fileno())

    def drop(self, file: str) -> None:
        """A file is not what it should be: the next run writes it again."""
        del self.done[file]
        self._write()

    def _write(self) -> None:
        text = json.dumps({"plan": self.plan}) + "\n" + "".join(_line(*entry) for entry in self.done.items())
        fresh = self.folder / f"{NAME}.new"
        write_bytes(fresh, text.encode())
        fresh.replace(self.folder / NAME)

    def _read(self) -> dict[str, Written] | None:
        """Files that are finished and there; None where this plan has not been begun."""
        try:
            first, *lines = (self.folder / NAME).read_text(encoding="utf-8").splitlines()
            if json.loads(first) != {"plan": self.plan}:
                return None
        except (OSError, ValueError):
            return None
        done = {}
        for line in lines:
            try:
                said = json.loads(line)
                done[said["file"]] = Written(said["size"], said["sha256"])
            except (ValueError, KeyError, TypeError):  # killed in the middle of a line
                break
        return {file: written for file, written in done.items() if _is_there(self.folder / file, written)}


def _line(file: str, written: Written) -> str:
    return json.dumps({"file": file, "size": written.size, "sha256": written.sha256}) + "\n"


def _is_there(file: Path, written: Written) -> bool:
    return file.is_file() and file.stat().st_size == written.size
