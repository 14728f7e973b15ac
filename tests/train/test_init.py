"""First weights have the deviations they should, and depend on seed and name alone."""

import math
from dataclasses import replace

import pytest
import torch
from bloomery.train.setup import build_decoder

from bloomery.errors import UsageError
from bloomery.families import FAMILIES
from bloomery.model.decoder import Decoder
from bloomery.model.init import init_decoder_
from bloomery.train.recipe.config import ModelShape

SHAPE = ModelShape(family="bloom", vocab_size=300, hidden_size=128, num_layers=3, num_heads=4, seq_len=32)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"mixtral"}))
def test_deviations_follow_the_kind_of_parameter(family: str) -> None:
    decoder = build_decoder(replace(SHAPE, family=family), FAMILIES[family], seed=1)
    for name, parameter in decoder.named_parameters():
        if "norm" in name and name.endswith("weight"):
            assert torch.all(parameter == 1), name
        elif name.endswith("bias"):
            assert torch.all(parameter == 0), name
        else:
            scale = math.sqrt(6) if name.endswith(("attn.out.weight", "mlp.down.weight")) else 1
            assert parameter.std().item() * scale == pytest.approx(0.02, rel=0.03), name
            assert abs(parameter.mean().item()) < 1e-3, name


def test_a_family_that_needs_more_than_sizes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a mixtral cannot be made from a recipe's sizes alone .*must be 2 or more"):
        build_decoder(SHAPE, FAMILIES["mixtral"], 0)


def test_a_family_brings_its_own_kind_of_positions() -> None:
    assert build_decoder(SHAPE, FAMILIES["bloom"], 0).config.positions == "alibi"
    assert build_decoder(SHAPE, FAMILIES["gpt2"], 0).config.positions == "learned"


def test_numbers_depend_on_seed_and_name_alone() -> None:
    whole = build_decoder(SHAPE, FAMILIES["bloom"], seed=1)
    torch.manual_seed(99)
    shallow = Decoder(replace(whole.config, num_layers=1, tied_head=False))
    init_decoder_(shallow, seed=1)
    assert torch.equal(whole.blocks[0].mlp.up.weight, shallow.blocks[0].mlp.up.weight)
    other = build_decoder(SHAPE, FAMILIES["bloom"], seed=2)
    assert not torch.equal(whole.blocks[0].mlp.up.weight, other.blocks[0].mlp.up.weight)
    assert not torch.equal(whole.blocks[0].mlp.up.weight, whole.blocks[1].mlp.up.weight)
