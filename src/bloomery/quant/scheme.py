"""Ways to keep a weight in few bits, as a table: which numbers share a scale, how many bytes. Knows no tensor.

A packed weight of N outputs and K inputs is bytes (ceil(N / 16), S): panels of 16 outputs, each with its scales and its
numbers in the order in which a product reads them. What only fills up, at the end of either side, is 0. A weight is
about q × scale.

- One scale for an output, 8 bits: 16 scales in fp32, then K / 4 blocks of 64 bytes. Byte 4r + j of block b is
  q[r][4b + j], from -127 to 127. K is filled up to a multiple of 128.
- One scale for a group of inputs, 4 bits: for each group 16 scales in bf16, then group / 8 blocks of 64 bytes. Byte
  4r + j of block b has q[r][8b + j] + 8 of the group in its low half and q[r][8b + 4 + j] + 8 in its high one, q being
  -8 to 7. K is filled up to a multiple of the group.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from bloomery.errors import UsageError

OUTPUTS = 16
"""Of a panel."""
FILLED_UP = 128
"""Inputs of a scheme without groups are filled up to a multiple of it."""
NONE = "none"
"""The word for weights that are kept as they are, on the command line and in JSON files."""


@dataclass(frozen=True)
class Scheme:
    """One way. `group` inputs share a scale; None: all of an output do."""

    name: str
    bits: int
    group: int | None

    def filled_up(self, inputs: int) -> int:
        """K as it is kept."""
        step = self.group or FILLED_UP
        return -(-inputs // step) * step

    @property
    def scale_bytes(self) -> int:
        """Of one scale: fp32 where an output has one, bf16 where it has many."""
        return 4 if self.group is None else 2

    def panel_bytes(self, inputs: int) -> int:
        """S."""
        kept = self.filled_up(inputs)
        scales = 1 if self.group is None else kept // self.group
        return OUTPUTS * (scales * self.scale_bytes + kept * self.bits // 8)

    def packed_shape(self, outputs: int, inputs: int) -> tuple[int, int]:
        """Of the bytes of a weight (N, K)."""
        return -(-outputs // OUTPUTS), self.panel_bytes(inputs)

    @property
    def bits_per_weight(self) -> float:
        """Of a large weight, scales included."""
        return self.bits + (8 * self.scale_bytes / self.group if self.group else 0.0)

    def __str__(self) -> str:
        shared = f"groups of {self.group} inputs" if self.group else "a scale for each output"
        return f"{self.name} ({shared}, {self.bits_per_weight:g} bits a weight)"


SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme for scheme in (Scheme("int8", 8, None), Scheme("int4", 4, 32), Scheme("int4-g128", 4, 128))
}


def scheme_named(name: str) -> Scheme | None:
    """The scheme of a name; None for "none". Raises UsageError for any other word."""
    if name != NONE and name not in SCHEMES:
        near = get_close_matches(str(name), [NONE, *SCHEMES], 1)
        hint = f"did you mean '{near[0]}'?" if near else f"give one of {', '.join([NONE, *SCHEMES])}"
        raise UsageError(f"quant is {ascii(name)[:80]}, which is no scheme: {hint}")
    return SCHEMES.get(name)


def name_of(scheme: Scheme | None) -> str:
    """The word that `scheme_named` takes."""
    return NONE if scheme is None else scheme.name
