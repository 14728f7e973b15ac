"""Each change of a weight is the formula of its paper, computed by numpy in float64, and knows what it fits."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bloomery.adapters.changes import Added, Change, LowRank, Replaced, Rows, Scaled, same

OUT, IN, RANK = 6, 4, 2


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 10 * sum(shape)))


def exact(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


W, UP, DOWN = random(OUT, IN), random(OUT, RANK), random(RANK, IN)
ROWS, COLUMNS = random(OUT).abs(), random(IN).abs()
SUM = exact(W) + 1.5 * exact(UP) @ exact(DOWN)
FORMULAS: list[tuple[Change, Tensor, np.ndarray]] = [
    (LowRank(UP, DOWN, 1.5), W, SUM),
    (
        LowRank(UP, DOWN, 1.5, ROWS),
        W,
        exact(ROWS)[:, None] * SUM / np.linalg.norm(SUM, axis=1, keepdims=True),
    ),
    (
        LowRank(UP, DOWN, 1.5, COLUMNS, by_column=True),
        W,
        exact(COLUMNS) * SUM / np.linalg.norm(SUM, axis=0, keepdims=True),
    ),
    (Scaled(ROWS[:, None]), W, exact(ROWS)[:, None] * exact(W)),
    (Scaled(COLUMNS[None]), W, exact(W) * exact(COLUMNS)),
    (Scaled(ROWS), random(OUT), exact(ROWS) * exact(random(OUT))),
    (Added(ROWS), random(OUT), exact(ROWS) + exact(random(OUT))),
    (Replaced(UP @ DOWN), W, exact(UP @ DOWN)),
    (
        Rows(torch.tensor([4, 1]), random(2, IN)),
        W,
        np.vstack([exact(random(2, IN))[{4: 0, 1: 1}[row]] if row in (1, 4) else exact(W)[row] for row in range(OUT)]),
    ),
]


@pytest.mark.parametrize(("change", "weight", "expected"), FORMULAS)
def test_formula(change: Change, weight: Tensor, expected: np.ndarray) -> None:
    before = weight.clone()
    assert change.fits(weight.shape)
    np.testing.assert_allclose(exact(change.apply(weight)), expected, rtol=2e-6, atol=1e-6)
    assert torch.equal(weight, before)  # it may be a view of a mapped file


@pytest.mark.parametrize(("change", "weight", "expected"), FORMULAS)
def test_half_precision_numbers_are_widened(change: Change, weight: Tensor, expected: np.ndarray) -> None:
    halved = {name: value.bfloat16() if _floating(value) else value for name, value in vars(change).items()}
    widened = {name: value.bfloat16().float() if _floating(value) else value for name, value in vars(change).items()}
    got = type(change)(**halved).apply(weight)
    assert got.dtype == torch.float32
    assert torch.equal(got, type(change)(**widened).apply(weight))


def _floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@pytest.mark.parametrize("change", [change for change, _, _ in FORMULAS])
@pytest.mark.parametrize("shape", [(OUT, IN + 1), (OUT + 1, IN), (IN, OUT), (OUT + 1,), (2, 3, 4), ()])
def test_another_shape_does_not_fit(change: Change, shape: tuple[int, ...]) -> None:
    table = isinstance(change, Rows) and shape == (OUT + 1, IN)  # its rows are there, too
    scales_columns = isinstance(change, Scaled) and change.factor.shape == (1, IN) and shape == (OUT + 1, IN)
    scales_rows = isinstance(change, Scaled) and change.factor.shape == (OUT, 1) and shape == (OUT, IN + 1)
    assert change.fits(shape) == (table or scales_columns or scales_rows)


def test_lengths_of_the_wrong_axis_do_not_fit() -> None:
    assert not LowRank(UP, DOWN, 1.0, COLUMNS).fits((OUT, IN))
    assert not LowRank(UP, DOWN, 1.0, ROWS, by_column=True).fits((OUT, IN))


def test_rows_beyond_the_table_do_not_fit() -> None:
    assert Rows(torch.tensor([OUT - 1]), random(1, IN)).fits((OUT, IN))
    assert not Rows(torch.tensor([OUT]), random(1, IN)).fits((OUT, IN))
    assert not Rows(torch.tensor([-1]), random(1, IN)).fits((OUT, IN))


def test_changes_are_the_same_by_their_numbers() -> None:
    for change, _, _ in FORMULAS:
        copy = type(change)(**{name: v.clone() if isinstance(v, Tensor) else v for name, v in vars(change).items()})
        assert same([change], [copy])
        assert not same([change], [])
        assert not same([change], [Added(random(3))])
    assert not same([LowRank(UP, DOWN, 1.0)], [LowRank(UP, DOWN, 2.0)])
    assert not same([LowRank(UP, DOWN, 1.0)], [LowRank(UP, DOWN, 1.0, ROWS)])
    assert not same([LowRank(UP, DOWN, 1.0)], [LowRank(UP + 1, DOWN, 1.0)])
    assert same([Replaced(W, below=True)], [Replaced(W.clone(), below=False)])
