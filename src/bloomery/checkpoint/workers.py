"""Work in processes that end when the one that started them does. Knows nothing of the work."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any, TypeVar

import torch

from bloomery.disk.place import Resumable

Result = TypeVar("Result")


def in_processes(
    jobs: int, work: Callable[..., Result], items: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[int, Result]]:
    """Call `work` with each item's arguments, `jobs` at once: (which item, result), as they come.

    New interpreters, not copies of this one, whose threads would not be copied. The first error ends all of them, and
    so does the end of this process, even by SIGKILL.

    Raises: as `work`, and
        Resumable: a process was killed.
    """
    context = get_context("spawn")
    listening, alive = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(min(jobs, len(items)), context, _begin, (listening,))
    try:
        numbers = {pool.submit(work, *item): number for number, item in enumerate(items)}
        for future in as_completed(numbers):
            yield numbers[future], future.result()
        pool.shutdown()
    except BrokenProcessPool:
        raise Resumable(
            "a process that was writing has been killed, maybe for want of memory: try again with fewer --jobs"
        ) from None
    finally:
        alive.close()
        pool.shutdown(cancel_futures=True)
        listening.close()


def _begin(listening: Connection) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; the first process ends the others
    Thread(target=_end_with, args=(listening,), daemon=True).start()


def _end_with(listening: Connection) -> None:
    """Wait until nobody holds the other end any more."""
    with suppress(EOFError, OSError):
        listening.recv()
    os._exit(1)
