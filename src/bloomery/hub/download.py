"""One file from the Hub to the disk, continued where an earlier attempt was cut, and checked. Knows no repository.

Bytes go to FILE.part; FILE.part.json, written before the first of them, remembers what they are the beginning of, and
the server's ETag. A later attempt asks for the rest (`Range`, `If-Range`); what is complete and has the right digest
gets its name. Killed at any moment, this loses what was on its way and no more.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from threading import Event
from typing import Any

from bloomery.errors import CheckpointError
from bloomery.hub.client import HubClient, Interrupted
from bloomery.hub.repository import Listing, RemoteFile, new_digest

PROGRESS = 2**20
"""Bytes that make an attempt count as one that got further."""


class Stopped(Exception):
    """Somebody else failed, or the user has enough: what is here stays as it is."""


@dataclass(frozen=True)
class Watch:
    """Who looks on: `moved` hears of bytes (fewer, where a file starts again), `note` of what is worth saying."""

    moved: Callable[[int], None]
    note: Callable[[str], None]
    stop: Event


class Partial:
    """FILE.part beside its target, and FILE.part.json: what it is the beginning of."""

    def __init__(self, target: Path, file: RemoteFile) -> None:
        self.target, self.file = target, file
        self.part = target.with_name(target.name + ".part")
        self.notes = target.with_name(target.name + ".part.json")
        known = self._read_notes()
        size = self.part.stat().st_size if self.part.exists() else 0
        self.fits = known.get("digest") == file.digest and known.get("size") == file.size and size <= file.size
        self.done = size if self.fits else 0
        self.etag = str(known["etag"]) if self.fits and known.get("etag") else None
        self.digest = new_digest(file)

    def _read_notes(self) -> dict[str, Any]:
        try:
            notes = json.loads(self.notes.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return notes if isinstance(notes, dict) else {}

    def recall(self) -> None:
        """Take what is here into the digest; away with what is the beginning of something else."""
        if not self.fits:
            self.discard()
        if self.done:
            with self.part.open("rb") as stream:
                while chunk := stream.read(PROGRESS):
                    self.digest.update(chunk)

    def discard(self) -> None:
        """Nothing is here any more. The bytes go before their notes do: notes without bytes do no harm."""
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        self.fits, self.etag, self.done, self.digest = True, None, 0, new_digest(self.file)

    def remember(self, etag: str | None) -> None:
        """Note what the bytes are, before the first of them is written. `etag`: the server's strong one, or None."""
        if etag == self.etag and self.notes.exists():
            return
        self.etag = etag
        notes = {"digest": self.file.digest, "size": self.file.size, "etag": etag}
        fresh = self.notes.with_name(self.notes.name + ".new")
        fresh.write_text(json.dumps(notes), encoding="utf-8")
        fresh.replace(self.notes)

    def take(self, stream: RawIOBase, chunk: bytes) -> None:
        """Write what has come. It is in the system's hands when this returns: no kill can take it back."""
        left = memoryview(chunk)
        while left:
            left = left[stream.write(left) :]
        self.digest.update(chunk)
        self.done += len(chunk)

    def finish(self) -> None:
        """Check the digest and give the file its name.

        Raises:
            CheckpointError: the content is not what the Hub lists; it is deleted.
        """
        kind, _, wanted = self.file.digest.partition(":")
        got = self.digest.hexdigest()
        if got != wanted:
            self.discard()
            raise CheckpointError(
                f"{self.file.path} has the wrong content ({kind} {got[:12]}…, the Hub lists {wanted[:12]}…): "
                "it was deleted; run it again"
            )
        with self.part.open("ab") as stream:  # an empty file is made here
            os.fsync(stream.fileno())
        self.part.replace(self.target)
        self.notes.unlink(missing_ok=True)  # not before: bytes without their notes would start again


def download(client: HubClient, listing: Listing, file: RemoteFile, target: Path, watch: Watch) -> None:
    """Fetch what is missing of a file, with as many attempts as the client has patience for.

    Raises:
        CheckpointError: the connection was cut too often (what is here is kept), or the content is wrong.
        UsageError: the Hub will not give it; says what to do.
        Stopped: `watch.stop` was set.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Partial(target, file)
    partial.recall()
    failures = 0
    while partial.done < file.size:
        before = partial.done
        try:
            _continue(client, listing, partial, watch)
        except Interrupted as cut:
            failures = 1 if partial.done - before >= PROGRESS else failures + 1
            if failures >= client.patience.tries:
                raise CheckpointError(
                    f"{file.path}: {cut}, {failures} times without getting further; {partial.done} of {file.size} "
                    "bytes are kept: run it again to continue there"
                ) from None
            pause = client.patience.pause(failures, cut.wait)
            watch.note(f"{file.path}: {cut} after {partial.done} of {file.size} bytes; again in {pause:.0f} s")
            if watch.stop.wait(pause):
                raise Stopped from None
    partial.finish()


def _continue(client: HubClient, listing: Listing, partial: Partial, watch: Watch) -> None:
    """One connection. Whatever it brings is written at once."""
    file, headers = partial.file, {}
    if partial.done:
        headers["range"] = f"bytes={partial.done}-"
        if partial.etag:
            headers["if-range"] = partial.etag
    with client.get(listing, file, headers) as response:
        _agree(response, partial, watch)
        etag = response.headers.get("etag")
        # A weak ETag says nothing of bytes. Without one the digest alone guards what is put together.
        partial.remember(etag if etag and not etag.startswith("W/") else None)
        with partial.part.open("ab", buffering=0) as stream:
            for chunk in response.iter_raw():
                if watch.stop.is_set():
                    raise Stopped
                if partial.done + len(chunk) > file.size:
                    raise Interrupted(f"more than the {file.size} bytes that are listed")
                partial.take(stream, chunk)
                watch.moved(len(chunk))
    if partial.done < file.size:
        raise Interrupted("the connection was cut")


def _agree(response: Any, partial: Partial, watch: Watch) -> None:
    """Hold the answer against what was asked for: the rest, or else the whole file, which starts it again.

    Raises:
        Interrupted: it is neither.
    """
    size, status = partial.file.size, response.status_code
    if status == 200 and response.headers.get("content-length", str(size)) == str(size):
        if partial.done:
            watch.note(f"{partial.file.path}: the server starts it again, {partial.done} bytes are given up")
            _give_up(partial, watch)
        return
    if partial.done and status in (206, 416):
        told = response.headers.get("content-range", "")
        if status == 206 and re.fullmatch(rf"bytes {partial.done}-\d+/({size}|\*)", told):
            return
        _give_up(partial, watch)
    raise Interrupted(f"answer {status} of another size than listed")


def _give_up(partial: Partial, watch: Watch) -> None:
    watch.moved(-partial.done)
    partial.discard()
