"""Who runs in the next step, and with which blocks. Knows no tensor.

A request starts when there are seats for all its sequences and blocks for what it begins with, and grows a block at
a time. Where none is left, the request that came last gives back its blocks, waits, and is computed again later:
nothing is dropped, and the one that came first always goes on.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from bloomery.engine.blocks import BlockPool
from bloomery.engine.request import Request, Slot
from bloomery.engine.strategy import Decision, Row
from bloomery.errors import UsageError

SHORT = 16
"""Rows of so many tokens at most go before longer ones: a long prompt must not keep running texts waiting."""


@dataclass(frozen=True)
class Work:
    """A piece of one row of a request, to be run in this step."""

    request: Request
    index: int  # of the request's sequence
    blocks: tuple[int, ...]
    start: int
    row: Row


@dataclass(frozen=True)
class Step:
    """What is to be done: blocks that get a new owner are cleared and others copied (from, to) before the work."""

    work: list[Work] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)


class Scheduler:
    """Continuous batching: requests join and leave between any two steps.

    Args:
        blocks: size of the pool.
        block: positions of one block.
        max_running: sequences that run at once.
        max_step_tokens: tokens of one step; a longer prompt is run in chunks beside what is decoding.
        first: the position of a sequence's first token; those before it are filled by others.
        cost: what a piece of so many tokens takes of a step's; None: as many as it has.
    """

    def __init__(
        self,
        *,
        blocks: int,
        block: int,
        max_running: int,
        max_step_tokens: int,
        first: int = 0,
        cost: Callable[[int], int] | None = None,
    ) -> None:
        self.cost = cost or int
        self.block = block
        self.first = first
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self.pool = BlockPool(blocks)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in the order of their arrival
        self.preempted = 0

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            UsageError: it could never fit, however long it waits.
        """
        seats, positions = request.strategy.seats, self.first + request.strategy.positions
        if seats > self.max_running:
            raise UsageError(
                f"a request of {seats} sequences at once does not fit a batch of {self.max_running}: ask for fewer, or "
                "raise max_batch_size"
            )
        if seats * self._blocks_for(positions) > self.pool.size:
            several = f"{seats} sequences of " if seats > 1 else ""
            raise UsageError(
                f"a request of {several}{positions} positions does not fit a cache of "
                f"{self.pool.size * self.block}: shorten it, or raise max_seq_len or cache_positions"
            )
        self.waiting.append(request)

    def schedule(self) -> Step:
        """The work of the next step."""
        self._admit()
        step, planned = Step(), self._plan()
        for request in list(self.running):  # the oldest first, so that it is never the one that gives way
            pieces, granted = planned.get(request, []), Step()
            while request in self.running and not self._grant(request, pieces, granted):
                self._preempt(self.running[-1])
            if request in self.running:
                step.work.extend(self._cut(request, index, count) for index, count in pieces)
                step.fresh.extend(granted.fresh)
                step.copies.extend(granted.copies)
        return step

    def follow(self, request: Request, decision: Decision) -> None:
        """Do to a request's sequences what its strategy decided."""
        for slot, back in zip(request.slots, decision.back, strict=False):
            slot.length -= back
            del slot.ids[len(slot.ids) - back :]
        if decision.keep is None:
            return
        before, used = request.slots, set()
        request.slots = []
        for parent in decision.keep:
            slot = before[parent]
            if parent in used:
                self.pool.share(slot.blocks)
                slot = Slot(list(slot.ids), slot.length, list(slot.blocks))
            used.add(parent)
            request.slots.append(slot)
        for index, slot in enumerate(before):
            if index not in used:
                self._empty(slot)

    def release(self, request: Request) -> None:
        """Take a request out, wherever it is, and its blocks back."""
        for slot in request.slots:
            self._empty(slot)
        request.slots = []
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def _admit(self) -> None:
        while self.waiting:
            request = self.waiting[0]
            seats = sum(other.strategy.seats for other in self.running) + request.strategy.seats
            request.slots = request.slots or [
                Slot(length=self.first, pending=row if row.ids else None) for row in request.strategy.rows()
            ]
            room = len(self.pool.free) - sum(map(self._lacking, self.running))
            if seats > self.max_running or self._lacking(request) > room:
                break
            self.running.append(self.waiting.popleft())
            for slot in request.slots:
                slot.wished = self.pool.wish(self._blocks_for(self.first + request.strategy.positions))

    def _lacking(self, request: Request) -> int:
        """Blocks that its rows will still take."""
        slots = [slot for slot in request.slots if slot.pending]
        return sum(max(0, self._blocks_for(_end(slot)) - len(slot.blocks)) for slot in slots)

    def _plan(self) -> dict[Request, list[tuple[int, int]]]:
        """Of each request, which of its sequences run how many tokens."""
        rows: list[tuple[Request, int, int]] = []
        for request in self.running:
            if all(slot.pending is None for slot in request.slots):
                for slot, row in zip(request.slots, request.strategy.rows(), strict=True):
                    slot.pending = row if row.ids else None
            rows += [(request, n, len(slot.pending.ids)) for n, slot in enumerate(request.slots) if slot.pending]
        budget, planned = self.max_step_tokens, dict[Request, list[tuple[int, int]]]()
        for request, index, count in sorted(rows, key=lambda row: row[2] > SHORT):
            if budget <= 0:
                break
            taken = min(count, budget)
            planned.setdefault(request, []).append((index, taken))
            budget -= self.cost(taken)
        return planned

    def _grant(self, request: Request, pieces: list[tuple[int, int]], granted: Step) -> bool:
        """Blocks of its own for all that the pieces write; False where there are no more."""
        for index, count in pieces:
            slot = request.slots[index]
            begin = min(
                slot.length // self.block, len(slot.blocks)
            )  # what stands before the first token wants blocks too
            for place in range(begin, self._blocks_for(slot.length + count)):
                held = slot.blocks[place] if place < len(slot.blocks) else None
                if held is not None and self.pool.holders[held] == 1:
                    continue
                block = self.pool.take(slot.wished)
                if block is None:
                    return False
                if held is None:
                    slot.blocks.append(block)
                    granted.fresh.append(block)
                else:  # others hold it as well, and go on otherwise
                    slot.blocks[place] = block
                    granted.copies.append((held, block))
                    self.pool.release([held])
        return True

    def _cut(self, request: Request, index: int, count: int) -> Work:
        """Cut the next piece off a row; the positions that are wanted are its last."""
        slot = request.slots[index]
        row = slot.pending
        assert row is not None
        ids, rest = row.ids[:count], row.ids[count:]
        wanted = max(0, row.wanted - len(rest))
        slot.pending = row._replace(ids=rest, wanted=row.wanted - wanted) if rest else None
        work = Work(request, index, tuple(slot.blocks), slot.length, row._replace(ids=ids, wanted=wanted))
        slot.length += count
        slot.ids += ids
        return work

    def _preempt(self, request: Request) -> None:
        """Take its blocks. When there is room it runs all its tokens again, and wants what is left to want."""
        self.preempted += 1
        for slot in request.slots:
            row = slot.pending or Row([], wanted=0)
            pending = row._replace(ids=slot.ids + row.ids)
            self._empty(slot)
            slot.ids, slot.length, slot.pending = [], self.first, pending
        self.running.remove(request)
        self.waiting.appendleft(request)

    def _empty(self, slot: Slot) -> None:
        self.pool.release(slot.blocks)
        self.pool.unwish(slot.wished)
        slot.blocks = []

    def _blocks_for(self, positions: int) -> int:
        return -(-positions // self.block)


def _end(slot: Slot) -> int:
    """Positions that are filled when its row has been run."""
    return slot.length + (len(slot.pending.ids) if slot.pending else 0)
