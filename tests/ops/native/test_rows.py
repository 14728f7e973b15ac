"""Native norms, activations and sums against float64, at every level of instructions."""

import struct

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bloomery.ops import native
from bloomery.ops.activation import _NUMBERS, ACTIVATIONS, activate, add, widened
from bloomery.ops.embedding import embed
from bloomery.ops.largest import largest
from bloomery.ops.native.calls import DTYPES, address, call
from bloomery.ops.norm import layer_norm, rms_norm
from bloomery.ops.rotary import rotary_angles, rotate

pytestmark = pytest.mark.skipif(native.library() is None, reason="the library was not built")
LEVELS = range(native.level() + 1 if native.library() else 0)
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-7}
NOT_FINITE = [torch.nan, torch.inf, -torch.inf]
levels = pytest.mark.parametrize("level", LEVELS, ids=lambda level: native.LEVELS[level])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def make(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 1).to(dtype)


def norm_at(x: Tensor, weight: Tensor, bias: Tensor | None, level: int, *, centred: bool) -> Tensor:
    out = torch.full_like(x, torch.nan)
    (epsilon,) = struct.unpack("q", struct.pack("d", 1e-5))
    addresses = address(x), address(weight), address(bias), address(out)
    call("norm", *addresses, *x.shape, centred, epsilon, DTYPES[x.dtype], level=level)
    return out


@levels
@dtypes
@pytest.mark.parametrize("shape", [(3, 7), (1, 1), (5, 64), (40, 1000), (2, 17), (0, 8)], ids=str)
def test_norms_equal_float64(shape, dtype, level):
    x, weight, bias = make(*shape, dtype=dtype), make(shape[1], dtype=dtype), make(shape[1], dtype=dtype, seed=1)
    exact = functional.layer_norm(x.double(), shape[1:], weight.double(), bias.double(), 1e-5)
    close = {"rtol": ROUNDING[dtype], "atol": 4 * ROUNDING[dtype]}
    torch.testing.assert_close(norm_at(x, weight, bias, level, centred=True).double(), exact, **close)
    exact = functional.rms_norm(x.double(), shape[1:], weight.double(), 1e-5)
    torch.testing.assert_close(norm_at(x, weight, None, level, centred=False).double(), exact, **close)


@levels
def test_a_norm_keeps_small_differences_of_large_numbers(level):
    """What lies in lanes beyond the end of a row must not be counted, not even to be subtracted again."""
    x = 1000 + torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]]) / 64
    one = torch.ones(17)
    exact = functional.layer_norm(x.double(), (17,), one.double(), None, 1e-5)
    torch.testing.assert_close(norm_at(x, one, None, level, centred=True).double(), exact, rtol=1e-3, atol=1e-3)


def test_a_row_that_is_not_finite_leaves_the_others_alone():
    x, weight = make(5, 20, dtype=torch.float32), make(20, dtype=torch.float32)
    with torch.inference_mode():
        good = layer_norm(x, weight, weight, 1e-5), rms_norm(x, weight, 1e-5)
        x[1, 19], x[3, 0] = torch.nan, torch.inf
        bad = layer_norm(x, weight, weight, 1e-5), rms_norm(x, weight, 1e-5)
    for before, after in zip(good, bad, strict=True):
        assert torch.equal(after[[0, 2, 4]], before[[0, 2, 4]])
        assert after[1].isnan().all()
        assert after[3].isnan().any()


@levels
@dtypes
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 40_001])
def test_activations_equal_float64(count, name, dtype, level):
    x = torch.linspace(-12, 12, count).to(dtype)
    x[-3:] = torch.tensor(NOT_FINITE[: len(x[-3:])])
    times, plus, out = make(count, dtype=dtype), make(count, dtype=dtype, seed=1), torch.full_like(x, 7)
    addresses = address(x), address(times), address(plus), address(out)
    call("each", *addresses, count, _NUMBERS[name], 0, DTYPES[dtype], level=level)
    exact = ACTIVATIONS[name](x.double()) * times.double() + plus.double()
    size = exact.abs() + (times.double() * x.double()).abs() + plus.double().abs()
    finite = exact.isfinite()
    assert ((out - exact).abs() <= ROUNDING[dtype] * size + 1e-7)[finite].all()
    assert torch.equal(out[~finite].isfinite(), exact[~finite].isfinite())


def test_tails_of_activations_go_to_zero_and_not_beyond():
    x = torch.tensor([-20.0, -100.0, -1e30, 20.0, 100.0, 1e30])
    with torch.inference_mode():
        for name in ACTIVATIONS:
            out = activate(x, name)
            assert (out[:3].abs() < 1e-6).all()
            assert torch.equal(out[3:], x[3:])


@dtypes
def test_parts_that_do_not_lie_together_are_taken_as_they_are(dtype):
    x, y = make(6, 10, dtype=dtype), make(10, 6, dtype=dtype, seed=1)
    with torch.inference_mode():
        assert torch.equal(add(x, y.T), x + y.T)
        assert torch.equal(activate(x[:, ::2], "relu", times=y.T[:, ::2]), (x.relu() * y.T)[:, ::2])


@dtypes
@pytest.mark.parametrize("plus", [False, True])
def test_rows_of_a_table_are_pytorchs(dtype, plus):
    table, places = make(50, 37, dtype=dtype), torch.tensor([49, 0, 7, 7])
    more = make(4, 37, dtype=dtype, seed=1) if plus else None
    with torch.inference_mode():
        out = embed(places, table, more)
    assert torch.equal(out, embed(places, table, more))


def test_a_row_that_is_not_there_is_nan():
    """And nothing beyond the table is read."""
    with torch.inference_mode():
        out = embed(torch.tensor([0, -1, 5, 10**12]), torch.ones(5, 20))
    assert torch.equal(out.isnan().any(1), torch.tensor([False, True, True, True]))


@dtypes
@pytest.mark.parametrize(("groups", "shared", "size", "half"), [(2, 3, 20, 8), (1, 4, 8, 4), (5, 1, 64, 32)])
def test_heads_are_turned_as_by_pytorch(dtype, groups, shared, size, half):
    fused = make(9, groups, shared + 2, size, dtype=dtype)
    places, frequencies = torch.arange(1000, 1009), torch.logspace(0, -4, half)
    like = torch.zeros(1, dtype=dtype)
    angles = rotary_angles(places, frequencies, like)
    for part in fused.split((shared, 1, 1), 2)[:2]:
        exact = rotate(part.double(), *(x.double() for x in angles))
        with torch.inference_mode():
            ours = rotate(part, *rotary_angles(places, frequencies, like))
        assert ((ours - exact).abs() <= ROUNDING[dtype] * (exact.abs() + 10)).all()
        assert torch.equal(ours[..., 2 * half :], part.flatten(1, 2)[..., 2 * half :])


@levels
@pytest.mark.parametrize("count", [1, 5, 16, 17, 16384, 16385, 50_000])
def test_the_largest_is_the_first_of_the_largest(count, level):
    for seed, change in enumerate((lambda x: x, torch.round, lambda x: x.fill_(-torch.inf), lambda x: x.abs().neg())):
        x = change(make(count, dtype=torch.float32, seed=seed))
        parts = -(-count // 16384)
        values, places = torch.empty(parts + 1), torch.empty(parts + 1, dtype=torch.int64)
        call("largest", address(x), address(values), address(places), count, level=level)
        assert float(values[-1]) == float(x.max())
        assert int(places[-1]) == int((x == x.max()).nonzero()[0])
        for place in {0, count // 2, count - 1}:
            one = x.clone()
            one[place] = torch.nan
            call("largest", address(one), address(values), address(places), count, level=level)
            assert values[-1].isnan()


def test_the_largest_of_logits_is_pytorchs():
    x = make(250_880, dtype=torch.float32)
    with torch.inference_mode():
        assert largest(x) == (float(x.max()), int(x.argmax()))
        assert largest(x[::2]) == (float(x[::2].max()), int(x[::2].argmax()))


def test_widened_numbers_are_the_same():
    x = make(3, 37, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(widened(x), x.float())
        assert widened(x.float()).dtype == torch.float32
