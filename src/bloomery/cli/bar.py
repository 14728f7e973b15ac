"""A progress bar for work that says how large it is once it has begun. Knows no work."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from bloomery.progress import Progress


class Reports(NamedTuple):
    """What the work calls: once with the bytes of all and of what is done, then with those that were added."""

    begun: Callable[[int, int], None]
    moved: Callable[[int], None]


@contextmanager
def bar(title: str) -> Iterator[Reports]:
    """On a terminal a bar, until the block ends."""
    with ExitStack() as stack:
        shown: list[Progress] = []

        def begun(total: int, done: int) -> None:
            shown.append(stack.enter_context(Progress(title, total, done)))

        def moved(count: int) -> None:
            shown[-1].moved(count)

        yield Reports(begun, moved)


def counted(number: int, what: str) -> str:
    """1 file, 2 files."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")
