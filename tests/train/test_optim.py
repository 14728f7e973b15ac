"""Decay touches matrices only; Muon has the blocks' matrices; clipping returns the norm; the state is by name."""

import pytest
import torch
from torch import nn

from bloomery.families import FAMILIES
from bloomery.train.optim import Optimizers, clip_gradients
from bloomery.train.recipe.pace_options import Optim
from training import make_loss, make_step, windows

MUON = Optim(name="muon", lr=0.01, weight_decay=0.3)


def optimizers(family: str, options: Optim) -> tuple[nn.Module, Optimizers]:
    decoder = make_loss(family, **({"num_experts": 4} if family == "mixtral" else {})).decoder
    return decoder, Optimizers(decoder.named_parameters(), options)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_decay_spares_norms_and_biases_and_nothing_else(family: str, name: str) -> None:
    decoder, found = optimizers(family, Optim(name=name, weight_decay=0.1))  # type: ignore[arg-type]
    groups = [group for part in found.parts for group in part.param_groups]
    spared = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    expected = {id(p) for m in decoder.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm) for p in m.parameters()}
    expected |= {id(p) for name, p in decoder.named_parameters() if name.endswith("bias")}
    assert spared == expected
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
    assert sum(len(group["params"]) for group in groups) == len(list(decoder.parameters()))


def test_muon_changes_the_matrices_inside_the_blocks_alone() -> None:
    decoder, found = optimizers("bloom", MUON)
    adamw, muon = ({found.names[p] for group in part.param_groups for p in group["params"]} for part in found.parts)
    names = dict(decoder.named_parameters())
    assert muon == {name for name in names if name.startswith("blocks.") and names[name].ndim == 2}
    assert muon | adamw == set(names)
    assert "embed.tokens.weight" in adamw


def test_a_step_of_muon_is_orthogonal_and_as_large_as_adamws() -> None:
    """All singular values of an update are near each other, and its root mean square is about 0.2 of the rate (Liu et
    al. 2025, section 2.2): numpy's own singular values say so."""
    loss = make_loss("bloom")
    weight = loss.decoder.blocks[0].mlp.up.weight
    before = weight.detach().clone()
    make_step(loss, MUON)(0, 0.01, windows(0))
    update = (before * (1 - 0.01 * 0.3) - weight.detach()).numpy()
    values = torch.linalg.svdvals(torch.from_numpy(update)).numpy()
    assert values.min() > 0.3 * values.max()  # the iteration leaves them between 0.5 and 1.5 of each other
    assert 0.01 * 0.2 * 0.7 < (update**2).mean() ** 0.5 < 0.01 * 0.2 * 1.3


@pytest.mark.parametrize("options", [Optim(), MUON], ids=["adamw", "muon"])
def test_state_is_by_name_and_there_before_the_first_step(options: Optim) -> None:
    made, other = make_loss("bloom"), make_loss("bloom")
    early, late = make_step(made, options), make_step(other, options)
    before = early.optimizers.state()
    assert list(before) == [name for name, _ in made.decoder.named_parameters()]
    assert not any(tensor.any() for kept in before.values() for tensor in kept.values())
    for step in range(2):
        for take in (early, late):
            take(step, 0.01, windows(step))
    one, two = early.optimizers.state(), late.optimizers.state()
    assert one.keys() == two.keys()
    for name, kept in one.items():
        assert kept.keys() == two[name].keys()
        assert all(torch.equal(tensor, two[name][key]) for key, tensor in kept.items())
        assert any(tensor.any() for tensor in kept.values())


def test_frozen_weights_are_left_out() -> None:
    decoder = make_loss("bloom").decoder.requires_grad_(False)
    decoder.norm.requires_grad_(True)
    found = Optimizers(decoder.named_parameters(), MUON)
    assert set(found.names.values()) == {"norm.weight", "norm.bias"}


@pytest.mark.parametrize("largest", [0.5, 100.0, 0.0])
def test_clipping_returns_the_norm_and_scales_only_above_the_limit(largest: float) -> None:
    module = nn.Linear(3, 2)
    gradients = torch.arange(8.0)
    module.weight.grad, module.bias.grad = gradients[:6].reshape(2, 3).clone(), gradients[6:].clone()
    norm = clip_gradients(module.parameters(), largest)
    assert norm.item() == pytest.approx(gradients.norm().item())
    after = torch.cat([module.weight.grad.flatten(), module.bias.grad])
    expected = gradients * (min(1, largest / gradients.norm().item()) if largest else 1)
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=0)
