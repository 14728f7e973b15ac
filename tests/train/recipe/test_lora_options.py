"""Options of an adapter are refused where they mean nothing, in one line."""

from typing import Any

import pytest

from bloomery.errors import UsageError
from bloomery.train.recipe.lora_options import LoraOptions


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": -1}, "lora.rank is -1: give a whole number from 0 up"),
        ({"rank": 4, "alpha": 0.0}, "lora.alpha is 0.0: give a number above 0"),
        ({"rank": 4, "alpha": float("nan")}, "lora.alpha is nan"),
        ({"rank": 4, "dropout": 1.0}, "lora.dropout is 1.0: give a number from 0 to below 1"),
        ({"rank": 4, "targets": ()}, "lora.targets names no matrix: give all-linear, or some of attn.qkv"),
        ({"rank": 4, "targets": ("c_attn",)}, "lora.targets holds 'c_attn': give all-linear alone, or some of"),
        ({"rank": 4, "targets": ("all-linear", "attn.qkv")}, "lora.targets holds 'all-linear': give all-linear alone"),
        ({"alpha": 32.0}, "lora.alpha means nothing without lora.rank: give a rank"),
        ({"targets": ("attn.qkv",)}, "lora.targets means nothing without lora.rank: give a rank"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        LoraOptions(**options)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
