"""Decoding steps as recordings: the decoder runs once for a number of rows, and what it called is called again.

Saves the time that Python takes to say the same things at every step. Knows no request.
"""

from torch import Tensor

from bloomery.log import logger
from bloomery.model.cache import CachedAttention
from bloomery.model.decoder import Decoder
from bloomery.ops.native.calls import thread_count
from bloomery.ops.native.tape import Arena, NotNative, Tape

ROWS = 64
"""Steps of more rows are not recorded: Python's part of their time is small."""


class Recorded:
    """A decoder for steps of one token a row, of each of which the hidden state is wanted.

    Weights must stay where they are.
    """

    def __init__(self, decoder: Decoder, *, possible: bool = True) -> None:
        self._decoder = decoder
        self._arena = Arena()
        self._seen: set[int] = set()  # numbers of rows that have run once: a recording must be worth its time
        self._steps: dict[int, _Step] = {}
        self._possible = possible

    def takes(self, rows: int, attend: CachedAttention) -> bool:
        """Whether a step of so many rows is one of a recording, or becomes one."""
        if not self._possible or rows > ROWS or attend.plan is None:
            return False
        known = rows in self._seen
        self._seen.add(rows)
        return known

    def run(self, ids: Tensor, positions: Tensor, attend: CachedAttention) -> Tensor:
        """As the decoder: (N,), (N,) -> (N, E)."""
        rows = len(ids)
        step = self._steps.get(rows)
        if step is not None and step.follow(ids, positions, attend):
            return step.tape.play().clone()
        try:
            step = self._steps[rows] = _Step(self._decoder, ids, positions, attend, self._arena)
            return step.tape.result.clone()
        except NotNative as what:
            logger.info("decoding steps are not recorded: %s has no kernel of ours", what)
            self._possible = False
            return self._decoder(ids, positions, attend)


class _Step:
    """One recording, and the tensors it reads."""

    def __init__(self, decoder: Decoder, ids: Tensor, positions: Tensor, attend: CachedAttention, arena: Arena) -> None:
        self._ids, self._positions = ids, positions
        self._attend = attend.with_room()
        self.threads = thread_count()
        self.tape = Tape(lambda: decoder(self._ids, self._positions, self._attend), arena)

    def follow(self, ids: Tensor, positions: Tensor, attend: CachedAttention) -> bool:
        """Take another step's inputs; False where they do not fit."""
        if self.threads != thread_count() or not self._attend.follow(attend):
            return False
        self._ids.copy_(ids)
        self._positions.copy_(positions)
        return True
