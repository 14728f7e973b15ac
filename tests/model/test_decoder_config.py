"""A DecoderConfig that cannot be built is refused in words."""

from dataclasses import FrozenInstanceError, replace

import pytest

from bloomery.errors import CheckpointError
from bloomery.model.config import DecoderConfig

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


def test_key_heads_must_divide_the_heads() -> None:
    with pytest.raises(CheckpointError, match="num_heads 5 and num_kv_heads 3 do not go together"):
        replace(GOOD, num_heads=5)


def test_config_cannot_change() -> None:
    with pytest.raises(FrozenInstanceError):
        GOOD.vocab_size = 11
