"""A DecoderConfig that cannot be built is refused in words."""

from dataclasses import FrozenInstanceError, replace

import pytest

from bloomery.errors import CheckpointError
from bloomery.model.config import DecoderConfig, RotaryConfig

GOOD = DecoderConfig(
    vocab_size=10,
    hidden_size=12,
    num_layers=1,
    num_heads=3,
    num_kv_heads=3,
    head_dim=4,
    ffn_size=48,
    max_seq_len=7,
    positions="alibi",
)
SIZES = ["vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "ffn_size", "max_seq_len"]


@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("value", [0, -1, 2.0, "8", None])
def test_size_that_is_no_positive_integer_is_named(field: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"{field} must be a positive integer, not {value!r}"):
        replace(GOOD, **{field: value})


@pytest.mark.parametrize("value", [0, -3, 2.5, "4096", True])
def test_window_is_a_positive_integer_or_none(value: object) -> None:
    assert replace(GOOD, sliding_window=None).sliding_window is None
    with pytest.raises(CheckpointError, match=f"sliding_window must be a positive integer, not {value!r}"):
        replace(GOOD, sliding_window=value)


@pytest.mark.parametrize("field", ["tied_head", "attn_bias", "mlp_bias", "head_bias", "gated_mlp", "embed_norm"])
def test_switch_is_true_or_false(field: str) -> None:
    with pytest.raises(CheckpointError, match=f"{field} must be true or false, not 1"):
        replace(GOOD, **{field: 1})


def test_a_token_takes_no_more_experts_than_there_are() -> None:
    with pytest.raises(CheckpointError, match="num_experts 2 and experts_per_token 3 do not go together"):
        replace(GOOD, num_experts=2, experts_per_token=3)


def test_rotary_positions_and_their_numbers_come_together() -> None:
    with pytest.raises(CheckpointError, match="positions are rotary, but rotary is None"):
        replace(GOOD, positions="rotary")
    with pytest.raises(CheckpointError, match="positions are alibi, but rotary is RotaryConfig"):
        replace(GOOD, rotary=RotaryConfig(dims=2))
    with pytest.raises(CheckpointError, match="6 rotary dimensions are more than the 4 of a head"):
        replace(GOOD, positions="rotary", rotary=RotaryConfig(dims=6))


def test_key_heads_must_divide_the_heads() -> None:
    with pytest.raises(CheckpointError, match="num_heads 5 and num_kv_heads 3 do not go together"):
        replace(GOOD, num_heads=5)


def test_config_cannot_change() -> None:
    with pytest.raises(FrozenInstanceError):
        GOOD.vocab_size = 11
