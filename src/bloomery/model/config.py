"""DecoderConfig: the facts that shape a decoder. Knows no family, no file format and no tensor."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from bloomery.errors import CheckpointError

# alibi_coarse: as some models were trained: slope × key position rounded to bf16, and scaled like the scores.
Positions = Literal["alibi", "alibi_coarse", "learned", "rotary"]
Activation = Literal["gelu_tanh", "gelu", "relu", "silu"]
# parallel: attention and feed-forward read the same input, each through its own norm, or through one.
Residual = Literal["sequential", "parallel", "parallel_one_norm"]
RotaryScaling = Literal["none", "linear", "by_wavelength"]

MOST_BLOCKS = 20_000
"""Experts of all layers: to make the modules of 2 billion, even without memory for their numbers, would never end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryConfig:
    """Rotary positions (Su et al. 2021, "RoFormer", section 3.2), in the order of halves.

    `dims` of each head are turned, the rest is left alone. `linear` divides every frequency by `factor` (Chen et al.
    2023, "Extending Context Window"); `by_wavelength` only slow ones: those that turn less than `low_freq_factor` times
    in `original_max_seq_len` positions, wholly, those that turn more than `high_freq_factor` times, not at all.

    Raises:
        CheckpointError: a value is not of its kind or out of its range.
    """

    dims: int
    theta: float = 10000.0
    scaling: RotaryScaling = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

    def __post_init__(self) -> None:
        _check_kinds(self)
        if self.dims % 2:
            raise CheckpointError(f"{self.dims} dimensions of a head are rotary, which is not even: check config.json")
        if self.theta <= 0 or self.factor <= 0:
            raise CheckpointError(
                f"rotary theta {self.theta} and factor {self.factor} must be above 0: check config.json"
            )
        if self.scaling == "by_wavelength" and not self.low_freq_factor < self.high_freq_factor:
            raise CheckpointError(
                f"rotary low_freq_factor {self.low_freq_factor} must be below high_freq_factor "
                f"{self.high_freq_factor}: check config.json"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Shape of one decoder. Each field is consumed in exactly one place in `model/`.

    `num_heads` queries share `num_kv_heads` keys and values, group by group. A token sees itself and the
    `sliding_window` - 1 before it; None: all. More than one expert: each token's feed-forward is `experts_per_token`
    of them, chosen and weighted by a router.

    Raises:
        CheckpointError: a value is not of its kind or out of its range, or two do not fit together.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    max_seq_len: int
    positions: Positions
    rotary: RotaryConfig | None = None
    sliding_window: int | None = None
    residual: Residual = "sequential"
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    embed_norm: bool = False
    activation: Activation = "gelu_tanh"
    gated_mlp: bool = False
    num_experts: int = 1
    experts_per_token: int = 1
    attn_bias: bool = True
    mlp_bias: bool = True
    head_bias: bool = False
    tied_head: bool = True

    def __post_init__(self) -> None:
        _check_kinds(self)
        for part, whole in (("num_kv_heads", "num_heads"), ("experts_per_token", "num_experts")):
            small, large = getattr(self, part), getattr(self, whole)
            if small > large or (whole == "num_heads" and large % small):
                raise CheckpointError(f"{whole} {large} and {part} {small} do not go together: check config.json")
        if self.num_layers * self.num_experts > MOST_BLOCKS:
            raise CheckpointError(
                f"{self.num_layers} layers of {self.num_experts} experts are more than any model has: check config.json"
            )
        if (self.positions == "rotary") != (self.rotary is not None):
            raise CheckpointError(f"positions are {self.positions}, but rotary is {self.rotary}: check config.json")
        if self.rotary is not None and self.rotary.dims > self.head_dim:
            raise CheckpointError(
                f"{self.rotary.dims} rotary dimensions are more than the {self.head_dim} of a head: check config.json"
            )


def _check_kinds(config: RotaryConfig | DecoderConfig) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type == int | None and value is None:
            continue
        # A bool is an int to Python; from 2^31 up torch raises errors of its own.
        if field.type in (int, int | None) and (type(value) is not int or not 1 <= value < 2**31):
            raise CheckpointError(f"{field.name} must be a positive integer, not {value!r}: check config.json")
        if field.type is bool and type(value) is not bool:
            raise CheckpointError(f"{field.name} must be true or false, not {value!r}: check config.json")
        if field.type is float and (type(value) not in (int, float) or not 0 <= value < math.inf):
            raise CheckpointError(f"{field.name} must be a number from 0 up, not {value!r}: check config.json")
