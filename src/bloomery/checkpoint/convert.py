"""A model's tensors -> a store, one tensor at a time, in several threads, to be continued when killed.

Knows neither where the tensors come from nor what they are for: an `Origin` says it.
"""

import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch

from bloomery.checkpoint import journal, manifest
from bloomery.checkpoint.journal import Journal
from bloomery.checkpoint.manifest import FileFacts, Manifest, Source
from bloomery.checkpoint.plan import Group, Plan, make_plan
from bloomery.checkpoint.precision import dtype_name
from bloomery.checkpoint.replace import refuse_others
from bloomery.checkpoint.tensors import EMBEDDING, KnownTensors
from bloomery.checkpoint.write import (
    READ_LATER,
    FileWriter,
    ReadingBack,
    Written,
    read_back,
    write_bytes,
    write_json,
)
from bloomery.disk.lock import only_writer
from bloomery.disk.place import Resumable, refuse_without_room, sync_folder, trade_places
from bloomery.errors import BloomeryError, CheckpointError, UsageError
from bloomery.log import logger
from bloomery.model.config import DecoderConfig
from bloomery.quant.scheme import Scheme, name_of

FILE_BYTES = 2**29
"""Where a new file begins: what a killed conversion loses, and a thread writes at a time. A tensor stays whole."""

Moved = Callable[[int], None]
"""Is told how many bytes have been written since it was last told."""


@dataclass(frozen=True)
class Origin:
    """Where a store comes from.

    `reopen` gives the same tensors to another thread. `files` go into the store as they are: config.json must be one
    of them. `identity` differs when the numbers or files do: what has been begun is continued only from the same.
    """

    family: str
    config: DecoderConfig
    source: Source
    tensors: KnownTensors
    reopen: Callable[[], KnownTensors]
    files: Mapping[str, Path | bytes]
    identity: Any


@dataclass(frozen=True)
class Converted:
    """A finished store: its manifest, the bytes of its weights, and how many of them were there already."""

    manifest: Manifest
    size: int
    kept: int


def convert(
    origin: Origin,
    target: Path,
    *,
    dtype: torch.dtype | None = None,
    tp: int = 1,
    jobs: int = 1,
    scheme: Scheme | None = None,
    file_bytes: int = FILE_BYTES,
    begun: Callable[[int, int], None] = lambda total, kept: None,
    moved: Moved = lambda count: None,
) -> Converted:
    """Write a store, which takes `target`'s place whole or not at all; an older store there is replaced.

    It is written into a hidden folder beside `target`. A run that was stopped, however rudely, is continued by the next
    one from the same origin with the same options: finished files are kept. When the disk has all files, they are read
    back and compared with what was written.

    Args:
        dtype: of what is not packed; None keeps each tensor's own.
        tp: into how many ranks' portions the weights are cut.
        jobs: threads that write, each a whole file of every rank at a time.
        scheme: packs the weights of linear layers, each rank's portion on its own.
        begun: is told the bytes of all weights, and how many of them are finished.

    Raises:
        UsageError: `target` holds something else, another process is writing there, or the model cannot be cut so.
        CheckpointError: a tensor cannot be read, converted or packed, or the disk fails or has not enough room.
    """
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}: give at least 1")
    plan = make_plan(origin.config, origin.tensors.kind, dtype, tp, file_bytes, scheme)
    target = target.resolve()  # where a link points to, not the link, is replaced
    refuse_others(target, "store", ("weights-*.safetensors", journal.NAME), (manifest.NAME, manifest.FORMAT.encode()))
    options = {"dtype": dtype and dtype_name(dtype), "tp": tp, "file_bytes": file_bytes, "scheme": name_of(scheme)}
    identity = {"origin": origin.identity, "config": asdict(origin.config), "version": manifest.VERSION} | options
    unfinished = target.with_name(f".{target.name}.converting")
    refused: BloomeryError | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(target.with_name(f".{target.name}.lock"), lambda: _refuse(target)):
            try:
                work = _Work(origin, plan, Journal(unfinished, identity), jobs)
                return work.finish(target, begun, moved)
            except BloomeryError as error:
                refused = error  # the lock's file goes all the same
    except OSError as error:
        raise CheckpointError(
            f"{target} cannot be written ({error}): make room or choose another place; what is finished is kept, and "
            "the same command goes on"
        ) from error
    assert refused is not None
    raise refused


def _refuse(target: Path) -> None:
    raise UsageError(f"another process is converting into {target}: wait for it, or choose another folder")


def write_group(
    tensors: KnownTensors, plan: Plan, group: Group, folder: Path, source: str, moved: Moved = lambda count: None
) -> list[Written]:
    """One file for each rank, from one reading of the tensors: the disk has them when this returns.

    Raises:
        CheckpointError: a number is too large for the dtype or cannot be packed, or a tensor cannot be read.
        OSError: the disk does not take it.
    """
    with ExitStack() as stack:
        reading = stack.enter_context(ReadingBack())
        files = zip(group.files, plan.layouts(group), strict=True)
        writers = [stack.enter_context(FileWriter(folder / file, layout, reading)) for file, layout in files]
        written: deque[str] = deque()
        for planned in group.tensors:
            name, plain = planned.name, planned.weight.plain
            what = f"{source}: tensor '{plain}'"
            tensor = tensors.read(plain)
            for rank, writer in enumerate(writers):
                part = plan.portion(planned, tensor, rank, what)
                writer.write(name, part, what, tensor)
                moved(part.numel() * planned.dtype.itemsize)
            del tensor, part
            written.append(plain)
            if len(written) > READ_LATER:  # what is still being compared would be read again
                tensors.release(written.popleft())
        results = [writer.finish() for writer in writers]
        for name in written:
            tensors.release(name)
        return results


@dataclass(frozen=True)
class _Work:
    """One store on its way."""

    origin: Origin
    plan: Plan
    journal: Journal
    jobs: int

    def finish(self, target: Path, begun: Callable[[int, int], None], moved: Moved) -> Converted:
        folder, done = self.journal.folder, self.journal.done
        pending = [group for group in self.plan.groups if not set(group.files) <= set(done)]
        total, left = (sum(map(self.plan.size, groups)) for groups in (self.plan.groups, pending))
        try:
            refuse_without_room(folder, left)
            begun(total, total - left)
            self._write(pending, moved)
        except BaseException as error:
            if done and (isinstance(error, Resumable) or not isinstance(error, BloomeryError)):
                self.journal.sweep()
                if not isinstance(error, Exception):  # Ctrl-C; errors say it themselves
                    logger.info("stopped: %d finished files are kept, and the same command goes on", len(done))
            else:  # nothing is finished, or the same would be refused again
                shutil.rmtree(folder, ignore_errors=True)
            raise
        described = self._describe()
        write_json(folder / manifest.NAME, described.as_json())
        folder.chmod(0o755)
        sync_folder(folder)
        trade_places(folder, target)
        sync_folder(target.parent)
        (target / journal.NAME).unlink()
        shutil.rmtree(folder, ignore_errors=True)  # the store that was there before
        return Converted(described, total, total - left)

    def _write(self, pending: list[Group], moved: Moved) -> None:
        """Write what is missing; meanwhile read what an earlier run has written, from the disk."""
        folder, earlier = self.journal.folder, dict(self.journal.done)
        with _in_threads(self.jobs) as reader, closing(self._written(pending, moved)) as groups:
            checks = {file: reader.submit(read_back, folder / file) for file in earlier}
            for group, written in groups:
                for file, facts in zip(group.files, written, strict=True):
                    self.journal.add(file, facts)
            wrong = [file for file, check in checks.items() if check.result() != earlier[file]]
        for file in wrong:
            self.journal.drop(file)
        if wrong:
            raise Resumable(
                f"{folder / wrong[0]} is not read back as it was written: check the disk, then run it again"
            )

    def _written(self, pending: list[Group], moved: Moved) -> Generator[tuple[Group, list[Written]]]:
        folder, source = self.journal.folder, self.origin.source.name
        if self.jobs == 1 or len(pending) < 2:
            for group in pending:
                yield group, write_group(self.origin.tensors, self.plan, group, folder, source, moved)
            return
        stopped = Event()

        def write(group: Group) -> list[Written]:
            return write_group(self.origin.reopen(), self.plan, group, folder, source, going_on)

        def going_on(count: int) -> None:
            if stopped.is_set():
                raise CancelledError
            moved(count)

        with _in_threads(self.jobs) as writers:
            groups = {writers.submit(write, group): group for group in pending}
            try:
                for future in as_completed(groups):
                    yield groups[future], future.result()
            finally:
                stopped.set()  # an error in one, or Ctrl-C, ends all

    def _describe(self) -> Manifest:
        """The manifest; puts the files beside the weights into the folder."""
        written = dict(self.journal.done)
        for name, content in self.origin.files.items():
            kept = content.read_bytes() if isinstance(content, Path) else content
            written[name] = write_bytes(self.journal.folder / name, kept)
        embedding = next(planned for planned in self.plan.groups[0].tensors if planned.name == EMBEDDING)
        return Manifest(
            family=self.origin.family,
            config=self.origin.config,
            dtype=dtype_name(embedding.dtype),
            tp=self.plan.tp,
            source=self.origin.source,
            weights=tuple(zip(*(group.files for group in self.plan.groups), strict=True)),
            files={name: FileFacts(*facts) for name, facts in sorted(written.items())},
            scheme=self.plan.scheme,
        )


@contextmanager
def _in_threads(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose work that has not begun is not begun any more when the block ends."""
    pool = ThreadPoolExecutor(jobs)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
