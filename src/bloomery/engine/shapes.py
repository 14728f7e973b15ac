"""To how many tokens, rows and positions a step is padded, so that its tensors have few shapes. Knows no tensor.

A step is made of rows that run one token each, as texts do that are decoding, and of longer ones, as prompts are. The
first are padded by rows that are nobody's, the others by tokens behind their own.
"""

from dataclasses import dataclass

from bloomery.engine.options import ShapesKind
from bloomery.errors import UsageError

USUAL_BUCKET = 128
"""What lengths are rounded up to with shapes=bucket, unless another number is asked for."""
HEAD_AT_ONCE = 64
"""Most positions whose logits exist at one time: 64 rows of a 250,880-token vocabulary are 64 MB in fp32."""


@dataclass(frozen=True)
class Shapes:
    """What steps look like.

    `static`: rows of one token are filled up to a full batch, prompts to a full chunk, and every row reads as many
    positions as a sequence may ever have. `bucket`: rows of one token are filled up to a power of two, tokens of a
    prompt and the positions that are read to a multiple of `bucket`. `dynamic`: nothing is padded.

    Args:
        bucket: 0 with another kind.
        batch: sequences that run at once.
        step: tokens of one step, before padding.
        context: positions of a sequence.
    """

    kind: ShapesKind = "dynamic"
    bucket: int = 0
    batch: int = 1
    step: int = 1
    context: int = 1

    @property
    def padded(self) -> bool:
        return self.kind != "dynamic"

    def tokens(self, count: int) -> int:
        """Tokens that a row of so many is padded to."""
        if count == 1 or not self.padded:
            return count
        return min(self.step, self.context) if self.kind == "static" else _up(count, self.bucket)

    def cost(self, count: int) -> int:
        """What a row of so many tokens takes of a step's. With static shapes a step has one long row at most."""
        return self.step if count > 1 and self.kind == "static" else self.tokens(count)

    def singles(self, count: int, *, alone: bool) -> int:
        """Rows that so many of one token each are padded to; `alone`: the step has no longer ones."""
        full = min(self.batch, self.step)
        if count == 0 or not self.padded:
            return count
        return min(_power(count), full) if self.kind == "bucket" and alone else full

    def reach(self, positions: int) -> int:
        """Positions that a row reads, which has so many; 0: those that it has."""
        if not self.padded:
            return 0
        return self.context if self.kind == "static" else min(_up(positions, self.bucket), self.context)

    def wanted(self, count: int) -> int:
        """Positions of a step whose hidden states are computed, where so many are wanted."""
        if not self.padded:
            return count
        few = min(self.batch, self.step)
        if self.kind == "static":
            return few if count <= few else few + self.tokens(self.step)
        return _power(count) if count <= HEAD_AT_ONCE else _up(count, HEAD_AT_ONCE)

    def logits(self, count: int) -> int:
        """Positions whose logits are computed at one time, where so many are wanted, at most HEAD_AT_ONCE."""
        return min(self.wanted(count), HEAD_AT_ONCE)

    def steps(self) -> list[list[int]]:
        """Tokens of the rows of one step of every shape; of dynamic ones the smallest and the largest."""
        full, chunk = min(self.batch, self.step), min(self.step, self.context)
        if self.kind == "dynamic":
            singles, long = [1, full], [[chunk]]
        elif self.kind == "static":
            singles, long = [full], [[chunk]]
        else:
            singles = [*(2**n for n in range(full.bit_length()) if 2**n < full), full]
            long = [[self.bucket] * count for count in range(1, _up(self.step, self.bucket) // self.bucket + 1)]
        if chunk == 1:  # a prompt is run token by token
            long = []
        mixed = [[1] * full + rows for rows in long] if self.padded else []
        return [[1] * count for count in dict.fromkeys(singles)] + long + mixed


def choose_shapes(kind: ShapesKind, bucket: int | None, *, batch: int, step: int, context: int) -> Shapes:
    """The shapes of an engine.

    Raises:
        UsageError: a bucket is larger than what is put into it.
    """
    if kind == "bucket":
        for name, most in (("max_step_tokens", step), ("max_seq_len", context)):
            if bucket is not None and bucket > most:
                raise UsageError(
                    f"bucket {bucket} is more than {name} {most}: lower bucket, raise {name}, or give shapes static"
                )
        bucket = max(2, min(bucket or USUAL_BUCKET, step, context))
    return Shapes(kind, bucket or 0, batch, step, context)


def _up(count: int, to: int) -> int:
    return -(-count // to) * to


def _power(count: int) -> int:
    """The smallest power of two that is as large."""
    return 1 << max(0, count - 1).bit_length()
