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
    opening: bool = False
    """A part of the row that the sequence begins with."""


@dataclass(frozen=True)
class Step:
    """What one model is to do: blocks that get a new owner are cleared and others copied (from, to) before the work."""

    model: int = 0
    work: list[Work] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)


class Scheduler:
    """Continuous batching: requests join and leave between any two steps.

    Args:
        blocks: size of the pool of each model.
        block: positions of one block.
        max_running: sequences that run at once.
        max_step_tokens: tokens of one step; a longer prompt is run in chunks beside what is decoding.
        first: the position of the first token of the model's sequences; those before it are filled by others.
        models: the model, and those that guess for it, whose sequences begin at position 0.
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
        models: int = 1,
        cost: Callable[[int], int] | None = None,
    ) -> None:
        self.cost = cost or int
        self.block = block
        self.firsts = (first, *[0] * (models - 1))
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self.pools = tuple(BlockPool(blocks) for _ in range(models))
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in the order of their arrival
        self.preempted = 0
        self._turn = self._last_model = 0

    @property
    def pool(self) -> BlockPool:
        """The model's own."""
        return self.pools[0]

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            UsageError: it could never fit, however long it waits.
        """
        seats, positions = request.strategy.seats, self.firsts[0] + request.strategy.positions
        if seats > self.max_running:
            raise UsageError(
                f"a request of {seats} sequences at once does not fit a batch of {self.max_running}: ask for fewer, or "
                "raise max_batch_size"
            )
        if seats * self._blocks_for(positions) > self.pool.size:
            several = f"{seats} sequences of " if seats > 1 else ""
            raise UsageError(
                f"a request of {several}{positions} positions does not fit a cache of "
                f"{self.pool.size * self.block}: shorten it, or raise cache_positions"
            )
        self.waiting.append(request)

    def schedule(self) -> Step:
        """The work of the next step."""
        self._admit()
        model = self._begin_rows()
        step, planned = Step(model), self._plan(model)
        for request in list(self.running):  # the oldest first, so that it is never the one that gives way
            pieces, granted = planned.get(request, []), Step()
            while request in self.running and not self._grant(request, pieces, granted):
                self._preempt(self._last_holder(model, request))
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
                self.pools[slot.model].share(slot.blocks)
                slot = Slot(list(slot.ids), slot.length, list(slot.blocks), opening=slot.opening, model=slot.model)
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
            if seats > self.max_running:
                break
            request.slots = request.slots or [
                Slot(length=self.firsts[row.model], pending=row if row.ids else None, model=row.model)
                for row in request.strategy.rows()
            ]
            if not all(self._has_room(model, request) for model in range(len(self.pools))):
                break
            self.running.append(self.waiting.popleft())
            for slot in request.slots:
                positions = self.firsts[slot.model] + request.strategy.positions
                slot.wished = self.pools[slot.model].wish(self._blocks_for(positions))

    def _has_room(self, model: int, request: Request) -> bool:
        """Blocks are left for one more beside what runs."""
        room = len(self.pools[model].free) - sum(self._lacking(model, other) for other in self.running)
        return self._lacking(model, request) <= room

    def _lacking(self, model: int, request: Request) -> int:
        """Blocks of a model that its rows will still take."""
        slots = [slot for slot in request.slots if slot.pending and slot.model == model]
        return sum(max(0, self._blocks_for(_end(slot)) - len(slot.blocks)) for slot in slots)

    def _begin_rows(self) -> int:
        """See that all who run have something to run; says which model's turn it is.

        A draft goes first: the model itself, which costs more, then runs for all together.
        """
        for request in self.running:
            if all(slot.pending is None for slot in request.slots):
                for slot, row in zip(request.slots, request.strategy.rows(), strict=True):
                    slot.pending = row if row.ids else None
        rows = [(slot.model, len(slot.pending.ids)) for r in self.running for slot in r.slots if slot.pending]
        model = max((model for model, _ in rows), default=0)
        # While a draft reads a long prompt, what is running gets every other step.
        if model and model == self._last_model and max(n for of, n in rows if of == model) > SHORT:
            model = min(of for of, _ in rows)
        self._last_model = model
        return model

    def _plan(self, model: int) -> dict[Request, list[tuple[int, int]]]:
        """Of each request, which of a model's sequences run how many tokens."""
        rows = [
            (request, index, len(slot.pending.ids))
            for request in self.running
            for index, slot in enumerate(request.slots)
            if slot.pending and slot.model == model
        ]
        self._turn += 1
        budget, planned = self.max_step_tokens, dict[Request, list[tuple[int, int]]]()

        def order(row: tuple[Request, int, int]) -> tuple[bool, int]:
            """What costs little first; among those that go on, whoever has waited longest; prompts as they came."""
            request, _, count = row
            return self.cost(count) > SHORT, request.turn if request.decided else 0

        for request, index, count in sorted(rows, key=order):
            if budget <= 0:
                break
            taken = min(count, budget)
            planned.setdefault(request, []).append((index, taken))
            request.turn = self._turn
            budget -= self.cost(taken)
        return planned

    def _grant(self, request: Request, pieces: list[tuple[int, int]], granted: Step) -> bool:
        """Blocks of its own for all that the pieces write; False where there are no more."""
        for index, count in pieces:
            slot = request.slots[index]
            pool = self.pools[slot.model]
            # What stands before the first token wants blocks too.
            begin = min(slot.length // self.block, len(slot.blocks))
            for place in range(begin, self._blocks_for(slot.length + count)):
                held = slot.blocks[place] if place < len(slot.blocks) else None
                if held is not None and pool.holders[held] == 1:
                    continue
                block = pool.take(slot.wished)
                if block is None:
                    return False
                if held is None:
                    slot.blocks.append(block)
                    granted.fresh.append(block)
                else:  # others hold it as well, and go on otherwise
                    slot.blocks[place] = block
                    granted.copies.append((held, block))
                    pool.release([held])
        return True

    def _cut(self, request: Request, index: int, count: int) -> Work:
        """Cut the next piece off a row; the positions that are wanted are its last."""
        slot = request.slots[index]
        row = slot.pending
        assert row is not None
        ids, rest = row.ids[:count], row.ids[count:]
        wanted = max(0, row.wanted - len(rest))
        slot.pending = row._replace(ids=rest, wanted=row.wanted - wanted) if rest else None
        work = Work(request, index, tuple(slot.blocks), slot.length, row._replace(ids=ids, wanted=wanted), slot.opening)
        slot.opening = slot.opening and bool(rest)
        slot.length += count
        slot.ids += ids
        return work

    def _last_holder(self, model: int, request: Request) -> Request:
        """Who came last of those that have blocks of a model, none earlier than this request."""
        return next(
            other
            for other in reversed(self.running)
            if other is request or any(slot.blocks and slot.model == model for slot in other.slots)
        )

    def _preempt(self, request: Request) -> None:
        """Take its blocks. When there is room it runs all its tokens again, and wants what is left to want."""
        self.preempted += 1
        for slot in request.slots:
            row = slot.pending or Row([], wanted=0, model=slot.model)
            pending = row._replace(ids=slot.ids + row.ids)
            self._empty(slot)
            slot.ids, slot.length, slot.opening = [], self.firsts[slot.model], True
            slot.pending = pending if pending.ids else None
        self.running.remove(request)
        self.waiting.appendleft(request)

    def _empty(self, slot: Slot) -> None:
        self.pools[slot.model].release(slot.blocks)
        self.pools[slot.model].unwish(slot.wished)
        slot.blocks = []

    def _blocks_for(self, positions: int) -> int:
        return -(-positions // self.block)


def _end(slot: Slot) -> int:
    """Positions that are filled when its row has been run."""
    return slot.length + (len(slot.pending.ids) if slot.pending else 0)
