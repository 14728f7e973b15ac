"""Which blocks of the pool are free, and how many slots hold each of the others. Knows no request and no tensor."""

from bisect import bisect_left, insort


class BlockPool:
    """Blocks 0 … size-1.

    Attention reads neighbours without gathering them, so whoever starts may `wish` for as many as it can grow to. A
    wish keeps others away while there is anything else, and no longer.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = list(range(size))  # ascending
        self.holders = [0] * size
        self._wished: set[int] = set()

    def wish(self, count: int) -> list[int]:
        """The first so many neighbours that are free and that nobody wishes for; none where there are no such."""
        free = [block for block in self.free if block not in self._wished]
        for place in range(len(free) - count + 1):
            if free[place + count - 1] - free[place] == count - 1:
                wished = free[place : place + count]
                self._wished.update(wished)
                return wished
        return []

    def unwish(self, wished: list[int]) -> None:
        self._wished.difference_update(wished)
        wished.clear()

    def take(self, wished: list[int]) -> int | None:
        """A free block, which gets its first holder: the next of what was wished for, where it is still to be had."""
        if not self.free:
            return None
        block = self._choose(wished)
        del self.free[bisect_left(self.free, block)]
        self.holders[block] = 1
        return block

    def share(self, blocks: list[int]) -> None:
        """They get one more holder each."""
        for block in blocks:
            self.holders[block] += 1

    def release(self, blocks: list[int]) -> None:
        """They lose a holder each; those without one are free."""
        for block in blocks:
            self.holders[block] -= 1
            if self.holders[block] == 0:
                insort(self.free, block)

    def _choose(self, wished: list[int]) -> int:
        while wished:
            block = wished.pop(0)
            self._wished.discard(block)
            if self.holders[block] == 0:
                return block
        return next((block for block in self.free if block not in self._wished), self.free[-1])
