"""Weight decay touches matrices only; the schedule has the values it promises; clipping returns the norm."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from bloomery.families import FAMILIES
from bloomery.train.config import ModelShape, Optim
from bloomery.train.optim import clip_gradients, learning_rate, parameter_groups
from bloomery.train.setup import build_decoder

OPTIONS = Optim(lr=1.0, min_lr_ratio=0.1, warmup_steps=10)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"mixtral"}))
def test_decayed_groups_contain_no_norm_or_bias(family: str) -> None:
    decoder = build_decoder(ModelShape(family=family, vocab_size=260, hidden_size=16), FAMILIES[family], 0)
    decayed, others = parameter_groups(decoder, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0
    spared = {id(p) for p in others["params"]}
    expected = {id(p) for m in decoder.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm) for p in m.parameters()}
    expected |= {id(p) for name, p in decoder.named_parameters() if name.endswith("bias")}
    assert spared == expected
    assert len(decayed["params"]) + len(others["params"]) == len(list(decoder.parameters()))


def test_the_schedule_rises_to_the_highest_rate_and_ends_at_the_lowest() -> None:
    rates = [learning_rate(OPTIONS, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[4] == pytest.approx(0.5)
    assert rates[9] == max(rates) == 1.0
    assert rates[109] == min(rates[10:]) == pytest.approx(0.1)
    assert rates[59] == pytest.approx(0.55)  # half-way down half a cosine
    assert all(a > b for a, b in pairwise(rates[9:]))


def test_without_warm_up_the_first_step_has_the_highest_rate() -> None:
    options = Optim(lr=3.0, warmup_steps=0, min_lr_ratio=0.0)
    assert learning_rate(options, 0, 50) == 3.0
    assert learning_rate(options, 49, 50) == pytest.approx(0)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (1, 1), (5, 5)])
def test_the_shortest_runs_have_a_rate(warmup: int, steps: int) -> None:
    assert learning_rate(Optim(lr=1.0, warmup_steps=warmup), steps - 1, steps) == 1.0


@pytest.mark.parametrize("largest", [0.5, 100.0])
def test_clipping_returns_the_norm_and_scales_only_above_the_limit(largest: float) -> None:
    module = nn.Linear(3, 2)
    gradients = torch.arange(8.0)
    module.weight.grad, module.bias.grad = gradients[:6].reshape(2, 3).clone(), gradients[6:].clone()
    norm = clip_gradients(module, largest)
    assert norm.item() == pytest.approx(gradients.norm().item())
    after = torch.cat([module.weight.grad.flatten(), module.bias.grad])
    expected = gradients * min(1, largest / gradients.norm().item())
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=0)
