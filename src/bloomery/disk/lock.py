"""One writer at a time in a folder that many processes may want to fill. Knows nothing of what is written."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bloomery.log import logger


@contextmanager
def only_writer(file: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock on `file`, which is made where there is none and vanishes when the block ends well.

    Whoever is killed loses the lock and leaves the file. `waiting` is called where another process holds it.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, file, waiting)
            if _names_it(file, descriptor):
                yield
                file.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder, so that nobody takes it for one that a killed process left behind."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _try_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def is_abandoned(folder: Path) -> bool:
    """Whether whoever made the folder is gone; False where that cannot be known."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        import fcntl  # not on every system

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _lock(descriptor: int, file: Path, waiting: Callable[[], None]) -> None:
    try:
        import fcntl  # not on every system
    except ImportError:
        logger.warning("%s cannot be locked on this system: take care that nobody else fetches this now", file)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:  # some network file systems
        logger.warning("%s cannot be locked (%s): take care that nobody else fetches this now", file, error.strerror)


def _names_it(file: Path, descriptor: int) -> bool:
    """The one who held the lock before may have removed the file: then there is a new one to lock."""
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
