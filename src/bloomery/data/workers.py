"""Shards encoded by many processes, given back in order. Knows no file.

Each process is spoken to through a pipe of its own. Whoever loses the other, killed or not, sees the pipe end: a
process does not outlive its parent, and a parent does not wait for a process that is gone.
"""

import signal
import traceback
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, cast

from bloomery.data.documents import Shard
from bloomery.data.encode import Encoder
from bloomery.data.unfinished import Encoded
from bloomery.errors import BloomeryError, UsageError

AHEAD = 4
"""Shards per process that may be done before an earlier one is."""


class Failure(NamedTuple):
    """What a process says instead of a result."""

    message: str
    ours: bool
    """The user can mend it."""


def encode_shards(shards: Sequence[Shard], encoder: Encoder, jobs: int) -> Generator[Encoded, None, None]:
    """The shards' tokens, in the order of the shards.

    Raises:
        UsageError: a shard is no text, or a process was killed.
    """
    if jobs == 1 or len(shards) < 2:
        yield from map(encoder, shards)
        return
    spawn = get_context("spawn")  # threads of the tokenizers library do not survive a fork
    workers: dict[Connection, Any] = {}
    try:
        for _ in range(min(jobs, len(shards))):
            ours, theirs = spawn.Pipe()
            worker = spawn.Process(target=_serve, args=(theirs, encoder), daemon=True)
            worker.start()
            theirs.close()
            workers[ours] = worker
        yield from _in_order(shards, list(workers), AHEAD * len(workers))
    finally:
        for ours, worker in workers.items():
            ours.close()
            worker.kill()  # it writes nothing, and SIGTERM does not reach it
            worker.join()


def _in_order(shards: Sequence[Shard], pipes: Sequence[Connection], ahead: int) -> Iterator[Encoded]:
    idle, busy = deque(pipes), dict[Connection, int]()
    results: dict[int, Encoded] = {}
    sent = 0
    for number in range(len(shards)):
        while number not in results:
            while idle and sent < min(number + ahead, len(shards)):
                pipe = idle.popleft()
                with suppress(BrokenPipeError):  # said where its answer is looked for
                    pipe.send(shards[sent])
                busy[pipe] = sent
                sent += 1
            for ready in wait(list(busy)):
                pipe = cast(Connection, ready)
                results[busy.pop(pipe)] = _answer(pipe)
                idle.append(pipe)
        yield results.pop(number)


def _answer(pipe: Connection) -> Encoded:
    try:
        answer = pipe.recv()
    except (EOFError, ConnectionError):
        raise UsageError(
            "a process that tokenizes was killed, perhaps for lack of memory: run it again with fewer --jobs, and it "
            "goes on where it was"
        ) from None
    if isinstance(answer, Failure):
        raise UsageError(answer.message) if answer.ours else RuntimeError(answer.message)
    return cast(Encoded, answer)


def _serve(pipe: Connection, encoder: Encoder) -> None:
    """What each process does until the pipe ends."""
    # Often sent to all processes at once; what they mean is the parent's affair.
    for number in (getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)):
        signal.signal(number, signal.SIG_IGN)
    with suppress(EOFError, ConnectionError):
        while True:
            shard = pipe.recv()
            pipe.send(_attempt(encoder, shard))


def _attempt(encoder: Encoder, shard: Shard) -> Encoded | Failure:
    try:
        return encoder(shard)
    except BloomeryError as error:
        return Failure(str(error), True)
    except Exception:
        return Failure(traceback.format_exc(), False)
