"""The loss of a head, a chunk at a time, is PyTorch's cross entropy of all logits at once, and so are its gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from bloomery.train.linear_loss import linear_loss

N, E, V = 50, 16, 97


def parts(dtype: torch.dtype, bias: bool) -> tuple[list[Tensor], Tensor]:
    """Hidden states, weight and bias that want gradients, and targets of which some count nothing."""
    made = torch.Generator().manual_seed(0)
    shapes = [(N, E), (V, E), (V,)][: 3 if bias else 2]
    tensors = [torch.randn(shape, generator=made, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    targets = torch.randint(0, V, (N,), generator=made)
    targets[[0, 7, N - 1]] = -1
    return tensors, targets


@pytest.mark.parametrize("chunk", [1, 7, 49, 50, 1000, 0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_loss_and_gradients_are_those_of_all_logits_at_once(
    chunk: int, bias: bool, dtype: torch.dtype, rtol: float
) -> None:
    ours, targets = parts(dtype, bias)
    theirs, _ = parts(dtype, bias)
    loss = linear_loss(ours[0], ours[1], ours[2] if bias else None, targets, chunk)
    expected = cross_entropy(linear(*theirs), targets, ignore_index=-1, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=0)
    (loss * 0.37).backward()
    (expected * 0.37).backward()
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("rows", [V, 10, 1, 0])
def test_under_autocast_products_are_bf16_and_gradients_keep_their_dtype(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """However many rows of the weight's gradient are added to at once."""
    monkeypatch.setattr("bloomery.train.linear_loss.PART_BYTES", 4 * E * rows)
    ours, targets = parts(torch.float32, True)
    exact, _ = parts(torch.float32, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_loss(*ours, targets, 7)
        expected = cross_entropy(linear(*exact).float(), targets, ignore_index=-1, reduction="sum")
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for found, wanted in zip(ours, exact, strict=True):
        assert found.grad is not None
        assert wanted.grad is not None
        assert found.grad.dtype == torch.float32
        assert (found.grad - wanted.grad).norm() < 0.01 * wanted.grad.norm()


def test_frozen_parts_get_no_gradient_and_nothing_is_kept_without_one() -> None:
    (hidden, weight), targets = parts(torch.float32, False)
    weight.requires_grad_(False)
    linear_loss(hidden, weight, None, targets).backward()
    assert hidden.grad is not None
    assert weight.grad is None
    with torch.no_grad():
        assert linear_loss(hidden, weight, None, targets).grad_fn is None


def test_a_tied_matrix_gets_both_gradients() -> None:
    (_, weight), targets = parts(torch.float64, False)
    ids = torch.arange(N) % V
    linear_loss(weight[ids], weight, None, targets, 7).backward()
    found, weight.grad = weight.grad, None
    cross_entropy(linear(weight[ids], weight), targets, ignore_index=-1, reduction="sum").backward()
    torch.testing.assert_close(found, weight.grad, rtol=1e-12, atol=1e-12)


def test_the_logits_of_all_positions_are_never_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    product = torch.addmm

    def watched(bias: Tensor, hidden: Tensor, matrix: Tensor, *, out: Tensor) -> Tensor:
        seen.append(len(hidden))
        return product(bias, hidden, matrix, out=out)

    monkeypatch.setattr(torch, "addmm", watched)
    tensors, targets = parts(torch.float32, True)
    linear_loss(*tensors, targets, 8).backward()
    assert seen == [8] * 6 + [2]


def test_where_there_is_no_position_gradients_are_zero() -> None:
    """On memory that holds something else: torch fills what is not written with numbers that are none."""
    hidden, weight, bias = (torch.zeros(shape, requires_grad=True) for shape in ((0, E), (V, E), (V,)))
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        linear_loss(hidden, weight, bias, torch.zeros(0, dtype=torch.long)).backward()
    finally:
        torch.use_deterministic_algorithms(before)
    assert weight.grad is not None
    assert not weight.grad.count_nonzero()
