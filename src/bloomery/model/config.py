"""DecoderConfig: the facts that shape a decoder. Knows no family, no file format and no tensor."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from bloomery.errors import CheckpointError

Positions = Literal["alibi", "learned"]
Activation = Literal["gelu_tanh", "gelu", "relu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Shape of one decoder. Each field is consumed in exactly one place in `model/`.

    Raises:
        CheckpointError: a value is not of its kind or out of its range, or the heads do not divide the hidden size.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int
    max_seq_len: int
    positions: Positions
    embed_norm: bool = False
    norm_eps: float = 1e-5
    activation: Activation = "gelu_tanh"
    tied_head: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # A bool is an int to Python; from 2^31 up torch raises errors of its own.
            if field.type is int and (type(value) is not int or not 1 <= value < 2**31):
                raise CheckpointError(f"{field.name} must be a positive integer, not {value!r}: check config.json")
            if field.type is bool and type(value) is not bool:
                raise CheckpointError(f"{field.name} must be true or false, not {value!r}: check config.json")
        if type(self.norm_eps) not in (int, float) or not 0 <= self.norm_eps < math.inf:
            raise CheckpointError(f"norm_eps must be a number from 0 up, not {self.norm_eps!r}: check config.json")
        if self.hidden_size % self.num_heads:
            raise CheckpointError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}: check config.json"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads
