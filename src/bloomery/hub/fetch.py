"""A repository of the Hub -> a folder: what to fetch, where to, files in parallel, one look to know that all is there.

Knows no folder's content: `download` has the bytes of one file, `snapshots` the places, `repository` the choice.
"""

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from bloomery.disk.lock import only_writer
from bloomery.disk.small import write_beside
from bloomery.errors import CheckpointError, UsageError
from bloomery.hub import snapshots
from bloomery.hub.client import HubClient
from bloomery.hub.download import Partial, Stopped, Watch, download
from bloomery.hub.repository import Listing, RemoteFile, choose, digest_of
from bloomery.log import logger
from bloomery.progress import Progress, as_size

MOST_JOBS = 64
"""More connections would only wait for one another."""


@dataclass(frozen=True)
class Result:
    """What a fetch has done. `moved` bytes came over the network; the others of `files` were here."""

    folder: Path
    listing: Listing
    files: tuple[RemoteFile, ...]
    moved: int

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def fetch(
    model: str,
    revision: str | None = None,
    *,
    client: HubClient,
    include: Sequence[str] = (),
    to: Path | None = None,
    jobs: int = 4,
) -> Result:
    """Have a model's files on this machine.

    Args:
        model: its name on the Hub; `revision`: branch, tag or commit, None for the main branch.
        include: patterns of the files to take instead of those that make the model.
        to: a folder for them instead of the cache: a new or an empty one, or one that an earlier fetch has begun.
        jobs: files that are fetched at once.

    Raises:
        UsageError: the model, revision or file does not exist or is not open, or `to` or the disk cannot take it.
        CheckpointError: the network, the server or the disk fails; what is here is kept, and the next run continues.
    """
    if not 1 <= jobs <= MOST_JOBS:
        raise UsageError(f"jobs is {jobs}: give 1 to {MOST_JOBS}")
    listing = client.listing(model, revision)
    _say_terms(client, listing)
    if to is not None:
        _refuse_other(to, listing)
    folder = to or snapshots.folder_of(model, listing.sha)
    with _disk_errors(folder):
        indices = _Indices(client, listing, folder)
        order = _Order(client, listing, choose(listing, tuple(include), indices), not include, folder, indices.read)
        here = [folder] if to is not None else [folder, snapshots.hub_snapshot(model, listing.sha)]
        result = next((Result(one, listing, order.files, 0) for one in here if order.is_done(one)), None)
        if result is not None:
            logger.info("%s at %s is here already: %s", model, listing.sha[:12], result.folder)
        else:
            result = order.fill(jobs)
        if to is None and order.whole:
            snapshots.remember_ref(model, revision, listing.sha)
    return result


def _say_terms(client: HubClient, listing: Listing) -> None:
    license = listing.license or "not stated"
    # Responsible AI licences restrict what the model may be used for, whoever runs it.
    binds = " (its terms bind how the model may be used)" if "rail" in license.lower() else ""
    logger.info("licence of %s: %s%s: read it at %s", listing.model, license, binds, listing.terms)
    if listing.gated:
        logger.info("%s is gated: its terms must be accepted at %s", listing.model, client.page(listing.model))


def _refuse_other(to: Path, listing: Listing) -> None:
    """A folder that holds something else would become a mixture."""
    if not to.exists():
        return
    if not to.is_dir():
        raise UsageError(f"--to {to} is a file: give a new or an empty folder")
    held = snapshots.held_by(to)
    if held is None and {file.name for file in to.iterdir()} <= {snapshots.UNFINISHED}:
        return
    if held != (listing.model, listing.sha):
        what = f"{held[0]} at {held[1][:12]}" if held else "something that was not fetched"
        raise UsageError(f"--to {to} holds {what}: give a new or an empty folder")


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or folder}: {error.strerror or error}: make room, or point elsewhere with --to or "
            "BLOOMERY_CACHE_DIR; what is here is kept, and the next run continues"
        ) from error


@dataclass(frozen=True)
class _Indices:
    """Content of index files: wanted before anything is written, and not fetched a second time."""

    client: HubClient
    listing: Listing
    folder: Path
    read: dict[str, bytes] = field(default_factory=dict)

    def __call__(self, file: RemoteFile) -> bytes:
        here = self.folder / file.path
        content = here.read_bytes() if file.is_at(here) else b""
        if digest_of(file, content) == file.digest:
            return content
        self.read[file.path] = self.client.read(self.listing, file)
        return self.read[file.path]


@dataclass(frozen=True)
class _Order:
    """One folder to be filled with `files`. `whole`: they are all that a model needs. `read`: content known already."""

    client: HubClient
    listing: Listing
    files: tuple[RemoteFile, ...]
    whole: bool
    folder: Path
    read: dict[str, bytes]

    def is_done(self, folder: Path) -> bool:
        """Whether all of it is in a folder: one that we have filled to the end, or huggingface_hub."""
        marker = snapshots.read_marker(folder)
        if folder == self.folder and (marker is None or not set(self.files) <= set(marker.files)):
            return False
        if folder == self.folder and self.whole and not (marker and marker.complete):
            return False
        return not snapshots.missing(folder, self.files)

    def fill(self, jobs: int) -> Result:
        """Fetch what is missing, unless another process is at it, and then wait for it."""
        reusable = snapshots.reusable(self.listing)
        self._refuse_without_room(reusable)
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / snapshots.UNFINISHED
        with only_writer(unfinished, self._say_waiting):
            if self.is_done(self.folder):
                logger.info("%s is here now: %s", self._title, self.folder)
                return Result(self.folder, self.listing, self.files, 0)
            snapshots.write_begun(self.folder, self.listing, self.files)
            for file in self._left():
                self._take(file, reusable.get(file.digest))
            moved = self._download(jobs) + sum(map(len, self.read.values()))
            for file in self.files:
                Partial(self.folder / file.path, file).discard()  # what a kill at a wrong moment has left
            self._marker().write(self.folder)
        size = sum(file.size for file in self.files)
        logger.info(
            "%s: %d files, %s, %s of them fetched now", self._title, len(self.files), as_size(size), as_size(moved)
        )
        return Result(self.folder, self.listing, self.files, moved)

    @property
    def _title(self) -> str:
        return f"{self.listing.model} at {self.listing.sha[:12]}"

    def _say_waiting(self) -> None:
        logger.info("another process fetches %s: waiting for it", self._title)

    def _left(self) -> list[RemoteFile]:
        return [file for file in self.files if not file.is_at(self.folder / file.path)]

    def _kept(self, file: RemoteFile) -> int:
        place = self.folder / file.path
        return file.size if file.is_at(place) else Partial(place, file).done

    def _refuse_without_room(self, reusable: dict[str, Path]) -> None:
        needed = sum(file.size - self._kept(file) for file in self.files if file.digest not in reusable)
        place = next(parent for parent in (self.folder, *self.folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(place).free
        if needed > free:
            raise UsageError(
                f"{self._title} needs {as_size(needed)} and {place} has {as_size(free)} free: make room, or point "
                "elsewhere with --to or BLOOMERY_CACHE_DIR"
            )

    def _take(self, file: RemoteFile, other: Path | None) -> None:
        """Put a file in its place without the network, if it is known: the same file of another commit, or an index."""
        place = self.folder / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        if other is not None:
            with suppress(OSError):  # a file system without links: it is fetched instead
                place.hardlink_to(other)
        elif file.path in self.read:
            write_beside(place, self.read[file.path])

    def _download(self, jobs: int) -> int:
        """Fetch all that is left, the largest first; returns the bytes that came."""
        left = sorted(self._left(), key=lambda file: -file.size)
        total, kept = sum(file.size for file in self.files), sum(map(self._kept, self.files))
        if left:
            logger.info(
                "fetching %s: %s of %s, into %s", self._title, as_size(total - kept), as_size(total), self.folder
            )
        stop = Event()
        with Progress(self.listing.model, total, kept) as progress:
            watch = Watch(progress.moved, progress.note, stop)

            def work(file: RemoteFile) -> None:
                download(self.client, self.listing, file, self.folder / file.path, watch)

            in_parallel(jobs, left, work, stop)
        return progress.received

    def _marker(self) -> snapshots.Fetched:
        """What is in the folder now, with what earlier fetches of the same commit have left there."""
        before = snapshots.read_marker(self.folder)
        old = [file for file in (before.files if before else ()) if file.is_at(self.folder / file.path)]
        return snapshots.Fetched(
            model=self.listing.model,
            source=self.client.page(self.listing.model),
            commit=self.listing.sha,
            license=self.listing.license,
            complete=self.whole or (before is not None and before.complete),
            files=tuple(dict.fromkeys((*old, *self.files))),
        )


def in_parallel(jobs: int, items: Iterable[RemoteFile], work: Callable[[RemoteFile], None], stop: Event) -> None:
    """Do `work` on all items, `jobs` at once. The first error stops the others and is raised."""
    waiting, errors = deque(items), list[BaseException]()

    def run() -> None:
        while not stop.is_set():
            try:
                item = waiting.popleft()
            except IndexError:
                return
            try:
                work(item)
            except BaseException as error:
                if not isinstance(error, Stopped):
                    errors.append(error)
                stop.set()

    # Daemons: Ctrl-C does not wait for a server that has fallen silent.
    threads = [Thread(target=run, daemon=True) for _ in range(min(jobs, len(waiting)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        stop.set()
        logger.info("stopped: what is here is kept, and the next run continues")
        raise
    if errors:
        raise errors[0]
