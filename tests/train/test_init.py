"""First weights have the deviations they should, and depend on seed and name alone."""

import math
from dataclasses import replace

import pytest
import torch

from bloomery.errors import UsageError
from bloomery.families import FAMILIES
from bloomery.families.shapes import SHAPES
from bloomery.model.decoder import Decoder
from bloomery.model.init import init_decoder_
from bloomery.train.model import build, describe
from bloomery.train.recipe.run_options import ModelShape

SHAPE = ModelShape(family="bloom", vocab_size=300, hidden_size=128, num_layers=3, num_heads=4, seq_len=32)


def build_decoder(shape: ModelShape, seed: int) -> Decoder:
    return build(describe(shape), shape, seed, torch.device("cpu"))


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"mixtral"}))
def test_deviations_follow_the_kind_of_parameter(family: str) -> None:
    decoder = build_decoder(replace(SHAPE, family=family), 1)
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
        build_decoder(replace(SHAPE, family="mixtral"), 0)


def test_a_family_brings_its_own_kind_of_positions() -> None:
    assert build_decoder(SHAPE, 0).config.positions == "alibi"
    assert build_decoder(replace(SHAPE, family="gpt2"), 0).config.positions == "learned"


def test_numbers_depend_on_seed_and_name_alone() -> None:
    whole = build_decoder(SHAPE, 1)
    torch.manual_seed(99)
    shallow = Decoder(replace(whole.config, num_layers=1, tied_head=False))
    init_decoder_(shallow, seed=1)
    assert torch.equal(whole.blocks[0].mlp.up.weight, shallow.blocks[0].mlp.up.weight)
    other = build_decoder(SHAPE, 2)
    assert not torch.equal(whole.blocks[0].mlp.up.weight, other.blocks[0].mlp.up.weight)
    assert not torch.equal(whole.blocks[0].mlp.up.weight, whole.blocks[1].mlp.up.weight)


def test_the_deviation_can_be_chosen() -> None:
    decoder = build_decoder(replace(SHAPE, init_std=0.05), 1)
    assert decoder.blocks[0].mlp.up.weight.std().item() == pytest.approx(0.05, rel=0.03)
    assert decoder.blocks[0].mlp.down.weight.std().item() * math.sqrt(6) == pytest.approx(0.05, rel=0.03)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_of_sizes_has_the_biases_and_the_head_of_its_published_models(family: str) -> None:
    raw = next(raw for raw in SHAPES.values() if raw["model_type"] == family)
    published = FAMILIES[family].to_config(raw)
    more = {"num_experts": 4} if family == "mixtral" else {}
    ours = build_decoder(replace(SHAPE, family=family, **more), 0).config
    for name in ("attn_bias", "mlp_bias", "head_bias", "tied_head", "norm", "activation", "gated_mlp", "embed_norm"):
        assert getattr(ours, name) == getattr(published, name), name
