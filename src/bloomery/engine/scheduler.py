"""Who runs in the next step, and with which blocks. Knows no tensor.

A request starts when a slot is free and the blocks for the most it can grow to are: what runs is never cut short, what
does not fit waits in order, nothing is dropped.
"""

from collections import deque
from dataclasses import dataclass

from bloomery.engine.request import Request, Slot
from bloomery.engine.strategy import Row
from bloomery.errors import UsageError


@dataclass(frozen=True)
class Work:
    """A piece of one request's row, to be run in this step."""

    request: Request
    blocks: tuple[int, ...]
    start: int
    row: Row


class Scheduler:
    """Continuous batching: requests join and leave between any two steps.

    Args:
        blocks: size of the pool.
        block: positions of one block.
        max_running: requests that run at once.
        max_step_tokens: tokens of one step; a longer prompt is run in chunks beside what is decoding.
        first: the position of a request's first token; those before it are filled by others.
    """

    def __init__(self, *, blocks: int, block: int, max_running: int, max_step_tokens: int, first: int = 0) -> None:
        self.block = block
        self.first = first
        self.total = blocks
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self.free = list(range(blocks))  # ascending
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            UsageError: it could never fit, however long it waits.
        """
        if self._blocks_for(request) > self.total:
            raise UsageError(
                f"a request of {self.first + request.strategy.positions} positions does not fit a cache of "
                f"{self.total * self.block}: shorten it or raise max_seq_len"
            )
        self.waiting.append(request)

    def schedule(self) -> tuple[list[Work], list[int]]:
        """The work of the next step, and the blocks that get a new owner in it."""
        fresh = self._admit()
        budget = self.max_step_tokens
        work = []
        # Those with one token left first: a long prompt must not keep running texts waiting.
        for request in sorted(self.running, key=lambda request: len(_pending(request).ids) > 1):
            if budget == 0:
                break
            work.append(self._take(request, budget))
            budget -= len(work[-1].row.ids)
        return work, fresh

    def release(self, request: Request) -> None:
        """Take a request out, wherever it is, and its blocks back."""
        if request.slot is not None:
            self.free = sorted([*self.free, *request.slot.blocks])
            request.slot = None
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def _admit(self) -> list[int]:
        fresh: list[int] = []
        while self.waiting and len(self.running) < self.max_running:
            count = self._blocks_for(self.waiting[0])
            if count > len(self.free):
                break
            request = self.waiting.popleft()
            request.slot = Slot(self._allocate(count), self.first)
            self.running.append(request)
            fresh += request.slot.blocks
        return fresh

    def _allocate(self, count: int) -> tuple[int, ...]:
        """The first free blocks that are neighbours, which attention reads without gathering; else any."""
        free = self.free
        runs = (place for place in range(len(free) - count + 1) if free[place + count - 1] - free[place] == count - 1)
        first = next(runs, 0)
        taken = tuple(free[first : first + count])
        del free[first : first + count]
        return taken

    def _take(self, request: Request, budget: int) -> Work:
        """Cut the next piece off a row; the positions that are wanted are its last."""
        slot, row = request.slot, _pending(request)
        assert slot is not None
        ids, rest = row.ids[:budget], row.ids[budget:]
        wanted = max(0, row.wanted - len(rest))
        slot.pending = row._replace(ids=rest, wanted=row.wanted - wanted) if rest else None
        work = Work(request, slot.blocks, slot.length, row._replace(ids=ids, wanted=wanted))
        slot.length += len(ids)
        return work

    def _blocks_for(self, request: Request) -> int:
        return -(-(self.first + request.strategy.positions) // self.block)


def _pending(request: Request) -> Row:
    """What a running request has left to run, asking its strategy when the last row is done."""
    assert request.slot is not None
    if request.slot.pending is None:
        request.slot.pending = request.strategy.row()
    return request.slot.pending
