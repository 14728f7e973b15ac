"""A token file while it grows: what a killed process wrote is kept, and what it wrote in part cut off. Knows no text.

Beside PREFIX lies the folder .PREFIX.unfinished with `job.json` (what is being made), `tokens.bin` and `lengths.bin`
(what there is so far) and `journal.jsonl`, a line for each shard that is in both. A line is written when its shard is.
"""

import json
import os
import shutil
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bloomery.data.tokens import About, about_text, hash_of, with_suffix, write_index
from bloomery.disk.place import sync_folder
from bloomery.errors import UsageError
from bloomery.log import logger


class Encoded(NamedTuple):
    """A shard's documents as tokens."""

    ids: bytes
    """Of all documents, one after the other, each with its end, in the file's number type."""
    lengths: bytes
    """Tokens of each document, int32."""
    text_bytes: int


class Totals(NamedTuple):
    """How far it is."""

    shards: int = 0
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0


class Unfinished:
    """The token file of one job; opening it again goes on after the last shard that is whole.

    Args:
        job: what decides the file's bytes. What is left of another job is thrown away.

    Raises:
        UsageError: the folder cannot be written.
    """

    def __init__(self, prefix: Path, dtype: np.dtype[np.integer], job: str) -> None:
        self.prefix, self.dtype, self.job = prefix, dtype, job
        self.folder = folder_of(prefix)
        self.folder.mkdir(parents=True, exist_ok=True)
        described = self.folder / "job.json"
        if was_publishing(prefix, job):
            with_suffix(prefix, ".json").unlink(missing_ok=True)
            os.replace(with_suffix(prefix, ".bin"), self.folder / "tokens.bin")
        if not described.exists() or described.read_text() != job:
            if (self.folder / "journal.jsonl").exists():
                logger.info("%s is left of other files or another tokenizer: beginning anew", self.folder)
            for name in ("journal.jsonl", "tokens.bin", "lengths.bin"):
                (self.folder / name).unlink(missing_ok=True)
            described.write_text(job)
        self.totals = self._journalled()
        self._open = ExitStack()
        self._tokens, self._lengths, self._journal = (
            self._open.enter_context((self.folder / name).open("ab"))
            for name in ("tokens.bin", "lengths.bin", "journal.jsonl")
        )
        self._digest = sha256()
        with (self.folder / "tokens.bin").open("rb") as written:
            while piece := written.read(2**20):
                self._digest.update(piece)

    def append(self, shard: Encoded) -> None:
        """Add the next shard.

        Raises:
            OSError: the disk is full; what was there before stays.
        """
        for file, raw in ((self._tokens, shard.ids), (self._lengths, shard.lengths)):
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        self._digest.update(shard.ids)
        was = self.totals
        self.totals = Totals(
            was.shards + 1,
            was.documents + len(shard.lengths) // 4,
            was.tokens + len(shard.ids) // self.dtype.itemsize,
            was.text_bytes + shard.text_bytes,
        )
        self._journal.write(json.dumps(self.totals).encode() + b"\n")
        self._journal.flush()

    def publish(self, *, vocab_size: int, eod: int, tokenizer_sha256: str) -> None:
        """Put PREFIX.bin, PREFIX.json and at last PREFIX.idx, without which nobody reads the others, into place."""
        self.close()
        index = self.folder / "tokens.idx"
        lengths = np.fromfile(self.folder / "lengths.bin", dtype="<i4")
        with index.open("wb") as file:
            write_index(file, self.dtype, lengths)
            file.flush()
            os.fsync(file.fileno())
        about = About(
            tokens=self.totals.tokens,
            documents=self.totals.documents,
            bin_sha256=self._digest.hexdigest(),
            idx_sha256=hash_of(index),
            vocab_size=vocab_size,
            eod=eod,
            tokenizer_sha256=tokenizer_sha256,
            text_bytes=self.totals.text_bytes,
            job=sha256(self.job.encode()).hexdigest(),
        )
        publish(self.folder, self.prefix, about)

    def close(self) -> None:
        """What is in the files stays."""
        self._open.close()

    def _journalled(self) -> Totals:
        """What the journal's whole lines speak of; all else is cut off."""
        journal = self.folder / "journal.jsonl"
        lines = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
        totals = Totals(*json.loads(lines[-1])) if lines else Totals()
        sizes = {
            "journal.jsonl": sum(len(line) + 1 for line in lines),
            "tokens.bin": totals.tokens * self.dtype.itemsize,
            "lengths.bin": totals.documents * 4,
        }
        for name, size in sizes.items():
            with (self.folder / name).open("ab") as file:
                if file.tell() < size:
                    raise UsageError(f"{self.folder / name} has lost its end: delete {self.folder} and begin anew")
                file.truncate(size)
        return totals


def publish(folder: Path, prefix: Path, about: About) -> None:
    """Move tokens.bin and tokens.idx of a folder, which then vanishes, into their places, with PREFIX.json.

    What a process that is killed here has put into place is taken back by the next (`was_publishing`).
    """
    described = folder / "about.json"
    described.write_text(about_text(about))
    for name, suffix in (("tokens.bin", ".bin"), ("about.json", ".json"), ("tokens.idx", ".idx")):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        os.replace(folder / name, with_suffix(prefix, suffix))
    sync_folder(prefix.parent)
    shutil.rmtree(folder)


def folder_of(prefix: Path) -> Path:
    """Where PREFIX grows."""
    return prefix.with_name(f".{prefix.name}.unfinished")


def was_publishing(prefix: Path, job: str) -> bool:
    """Whether a killed process of this job has put PREFIX.bin into place, and no index yet."""
    folder = folder_of(prefix)
    try:
        begun = (folder / "job.json").read_text() == job and (folder / "journal.jsonl").exists()
    except OSError:
        return False
    bins = (folder / "tokens.bin").exists(), with_suffix(prefix, ".bin").exists()
    return begun and bins == (False, True) and not with_suffix(prefix, ".idx").exists()
