"""ALiBi slopes are those of transformers, for any number of heads."""

import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from bloomery.ops.position import alibi_slopes


@pytest.mark.parametrize("heads", range(1, 129))
def test_slopes_equal_transformers(heads: int) -> None:
    # Position 1 of their tensor is the slope itself. They take powers of a rounded base: up to 128 roundings.
    theirs = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(torch.tensor(alibi_slopes(heads)), theirs, rtol=128 * 2**-24, atol=0)


def test_slopes_of_eight_heads_are_the_papers() -> None:
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]  # Press et al. 2021, section 3
