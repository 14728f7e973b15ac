"""One engine for whoever iterates over requests on it, in one thread or in several: they step it in turns.

Knows neither prompts nor texts.
"""

from collections import deque
from collections.abc import Callable, Iterator
from threading import RLock
from time import perf_counter
from typing import Generic, TypeVar

from bloomery.engine.engine import Engine
from bloomery.engine.request import Request, Update

T = TypeVar("T")


class Turns(Generic[T]):
    """What a step says to another iterator waits until that one looks.

    Args:
        note: what is to be kept of an update from the moment of its step, since the next one goes on.
    """

    def __init__(self, engine: Engine, note: Callable[[Update], T]) -> None:
        self.engine, self._note = engine, note
        self._inboxes: dict[int, deque[tuple[Update, T]]] = {}
        self._turn = RLock()

    def updates(self, requests: list[Request]) -> Iterator[tuple[Update, T]]:
        """Run requests to their ends. Whatever stops this early (an error, Ctrl-C, a closed iterator) ends them all.

        Raises:
            UsageError: one could never fit.
            BloomeryError: what ended one of them.
        """
        inbox: dict[int, deque[tuple[Update, T]]] = {id(request): deque() for request in requests}
        try:
            with self._turn:
                self._inboxes.update(inbox)
                for request in requests:
                    request.arrived = perf_counter()
                    self.engine.add(request)
            while True:
                with self._turn:  # also to look: another thread's step ends requests before it hands out what they said
                    if not any(inbox.values()):
                        if all(request.finished is not None for request in requests):
                            return
                        self._step()
                for queue in inbox.values():
                    while queue:
                        update, noted = queue.popleft()
                        if update.error is not None:
                            raise update.error
                        yield update, noted
        finally:
            with self._turn:
                for request in requests:
                    self.engine.abort(request)
                    self._inboxes.pop(id(request), None)

    def run(self, requests: list[Request]) -> None:
        """Run requests whose strategies keep what they find."""
        for _ in self.updates(requests):
            continue

    def _step(self) -> None:
        try:
            updates = self.engine.step()
        except BaseException:
            self._hand_out(self.engine.lost())
            raise
        self._hand_out(updates)

    def _hand_out(self, updates: list[Update]) -> None:
        for update in updates:
            inbox = self._inboxes.get(id(update.request))
            if inbox is not None:  # else nobody listens any more
                inbox.append((update, self._note(update)))
