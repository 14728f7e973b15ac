"""A step depends on its global batch and its number alone, and one that is not finite changes nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bloomery.model.decoder import Decoder
from bloomery.train.loss import SequenceLoss, count_of
from bloomery.train.passes import add_dropout_, compile_, recompute_
from bloomery.train.step import NotFinite
from training import make_loss, make_step, windows

FAMILIES = ["bloom", "gpt2", "llama", "falcon", "phi", "gpt_bigcode", "mistral"]


def numbers(loss: SequenceLoss, steps: int = 3, lr: float = 1e-3, **options: int) -> list[tuple[float, float]]:
    take = make_step(loss, **options)
    results = [take(step, lr, windows(step)) for step in range(steps)]
    return [(result.loss, result.grad_norm) for result in results]


def same(one: Decoder, other: Decoder) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_micro_batches_add_up_to_the_step(micro: int) -> None:
    whole, parts = make_loss("bloom"), make_loss("bloom")
    for one, other in zip(numbers(whole), numbers(parts, micro=micro), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns(family: str) -> None:
    losses = [loss for loss, _ in numbers(make_loss(family), steps=12, lr=1e-2)]
    assert losses[-1] < losses[0] - 0.5


def test_bf16_compute_stays_near_fp32_and_keeps_fp32_weights() -> None:
    exact, rounded = make_loss("bloom"), make_loss("bloom", torch.bfloat16)
    for one, other in zip(numbers(exact), numbers(rounded), strict=True):
        assert other[0] == pytest.approx(one[0], rel=5e-3)
        assert other[1] == pytest.approx(one[1], rel=2e-2)
        assert other != one
    assert {p.dtype for p in rounded.decoder.parameters()} == {torch.float32}


# --- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_isolated_documents_are_as_if_each_stood_alone(family: str) -> None:
    """Positions are relative in both families, so a document does not feel where it stands."""
    loss, ids = make_loss(family), windows(0, sequences=1)
    segments = torch.tensor([[0] * 7 + [1] * 10 + [2] * 8])
    together = loss(ids, segments)
    apart = [loss(ids[:, a:b]) for a, b in ((0, 7), (7, 17), (17, 25))]
    torch.testing.assert_close(together, torch.stack(apart).sum(), rtol=1e-5, atol=0)
    assert count_of(ids, segments) == 24 - 2
    assert not torch.isclose(loss(ids), together, rtol=1e-3)


# --- passes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputing_changes_no_bit(family: str) -> None:
    plain, again = make_loss(family), make_loss(family)
    for loss in (plain, again):
        add_dropout_(loss.decoder, 0.2)
        loss.attention_dropout = 0.1
    recompute_(again.decoder)
    assert numbers(plain) == numbers(again)
    assert same(plain.decoder, again.decoder)


def test_recomputing_keeps_less() -> None:
    """Numbers that autograd keeps of a forward pass, weights left out."""

    def kept(change: Callable[[Decoder], None]) -> int:
        loss, count = make_loss("bloom", num_layers=8), 0
        change(loss.decoder)
        weights = {p.untyped_storage().data_ptr() for p in loss.decoder.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            nonlocal count
            count += tensor.numel() * (tensor.untyped_storage().data_ptr() not in weights)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss(windows(0))
        return count

    assert kept(recompute_) < 0.3 * kept(lambda decoder: None)


@pytest.mark.slow
# What torch's compiler says of itself:
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated", "ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("recompute", [False, True])
def test_compiling_changes_only_the_last_bits(recompute: bool) -> None:
    plain, compiled = make_loss("bloom"), make_loss("bloom")
    names = [name for name, _ in compiled.decoder.named_parameters()]
    compile_(compiled.decoder)
    if recompute:
        recompute_(compiled.decoder)
    for one, other in zip(numbers(plain), numbers(compiled), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert [name for name, _ in compiled.decoder.named_parameters()] == names


@pytest.mark.slow
# What torch's compiler says of itself:
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated", "ignore:The .grad attribute of a Tensor")
def test_code_is_made_once_for_all_layers_and_lengths() -> None:
    """Beyond eight kinds of a function torch goes on without compiling it, so that a restart would change bits."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    loss = make_loss("llama", num_layers=10)
    loss.attention_dropout = 0.1
    compile_(loss.decoder)
    made = []
    for length in (24, 16, 300, 200, 600):
        loss(windows(0, length=length)).backward()
        made.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert made[0] < 4
    assert made[1:] == [made[1]] * 4
    assert torch._dynamo.utils.counters["frames"]["total"] == torch._dynamo.utils.counters["frames"]["ok"]


@pytest.mark.parametrize("where", ["residual", "attention"])
def test_what_is_dropped_follows_from_seed_and_step(where: str) -> None:
    def dropping(seed: int) -> list[tuple[float, float]]:
        loss = make_loss("bloom")
        add_dropout_(loss.decoder, 0.3 if where == "residual" else 0.0)
        loss.attention_dropout = 0.3 if where == "attention" else 0.0
        torch.manual_seed(seed * 77)  # what was drawn before has no part in it
        return numbers(loss, micro=2, seed=seed)

    assert dropping(1) == dropping(1)
    assert dropping(1) != dropping(2)
    assert dropping(1) != numbers(make_loss("bloom"), micro=2)


# --- numbers that are not finite -------------------------------------------------------------------------------------


class Spoiled(SequenceLoss):
    """A loss that is infinite in the steps named."""

    bad: tuple[int, ...] = ()
    calls = 0

    def __call__(self, windows: Tensor, segments: Tensor | None = None) -> Tensor:
        self.calls += 1
        return super().__call__(windows) * (float("inf") if self.calls - 1 in self.bad else 1)


def test_a_step_that_is_not_finite_is_skipped_and_counted() -> None:
    loss = Spoiled(make_loss("bloom").decoder, torch.float32)
    loss.bad = (1,)
    take = make_step(loss)
    take(0, 1e-3, windows(0))
    before = [p.clone() for p in loss.decoder.parameters()]
    state = {name: {k: t.clone() for k, t in kept.items()} for name, kept in take.optimizers.state().items()}
    assert take(1, 1e-3, windows(1)).skipped
    assert take.skipped == 1
    assert all(torch.equal(p, q) for p, q in zip(loss.decoder.parameters(), before, strict=True))
    for name, kept in take.optimizers.state().items():
        assert all(torch.equal(tensor, state[name][key]) for key, tensor in kept.items())
    assert not take(2, 1e-3, windows(2)).skipped
    assert not torch.equal(loss.decoder.embed.tokens.weight, before[0])
    assert all(torch.isfinite(p).all() for p in loss.decoder.parameters())


def test_several_skipped_steps_in_a_row_end_the_run_and_name_the_step() -> None:
    loss = Spoiled(make_loss("bloom").decoder, torch.float32)
    loss.bad = (1, 3, 4, 5)
    take = make_step(loss, patience=3)
    for step in range(5):
        take(step, 1e-3, windows(step))
    with pytest.raises(NotFinite, match=r"step 6: .*3 steps in a row were not finite: lower optim\.lr"):
        take(5, 1e-3, windows(5))
    assert take.skipped == 4


def test_sequences_that_grow_leave_no_memory_behind() -> None:
    loss = make_loss("bloom")
    with torch.no_grad():
        for length in range(2, 24):
            loss(windows(0, length=length))
    assert len(loss._shaped) <= 4
