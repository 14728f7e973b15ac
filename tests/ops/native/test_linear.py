"""Native linear layers against float64, at every level of instructions; and what an output's bits depend on."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from bloomery.ops import native
from bloomery.ops.linear import linear
from bloomery.ops.native.calls import DTYPES, address, call

pytestmark = pytest.mark.skipif(native.library() is None, reason="the library was not built")
LEVELS = range(native.level() + 1 if native.library() else 0)
SHAPES = [(1, 1, 1), (3, 5, 7), (1, 64, 64), (17, 33, 100), (130, 70, 129), (5, 3, 31), (16, 4, 32), (2, 1000, 48)]
"""Tokens, outputs, inputs."""
ROUNDING = {torch.float32: 2e-7, torch.bfloat16: 2**-8}
"""Of an output, relative to the sum of the magnitudes of its products."""


def make(tokens: int, outputs: int, inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(tokens + outputs + inputs)
    shapes = (tokens, inputs), (outputs, inputs), (outputs,)
    x, weight, bias = (torch.randn(shape, generator=random).to(dtype) for shape in shapes)
    return x, weight, bias


def at_level(x: Tensor, weight: Tensor, bias: Tensor | None, level: int, threads: int = 2) -> Tensor:
    out = torch.full((len(x), len(weight)), torch.nan, dtype=x.dtype)
    fields = address(x), address(weight), address(bias), address(out), len(x), *weight.shape, DTYPES[x.dtype]
    call("linear", *fields, level=level, threads=threads)
    return out


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: native.LEVELS[level])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64(shape, dtype, level):
    x, weight, bias = make(*shape, dtype)
    exact = x.double() @ weight.double().T + bias.double()
    size = x.double().abs() @ weight.double().abs().T + bias.double().abs()
    assert ((at_level(x, weight, bias, level) - exact).abs() <= ROUNDING[dtype] * size).all()
    plain = at_level(x, weight, None, level)
    assert ((plain - (exact - bias.double())).abs() <= ROUNDING[dtype] * size).all()


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: native.LEVELS[level])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_depend_on_the_token_alone(shape, dtype, level):
    x, weight, bias = make(*shape, dtype)
    together = at_level(x, weight, bias, level)
    for threads in (1, 3):
        assert torch.equal(at_level(x, weight, bias, level, threads), together)
    for token in range(len(x)):
        assert torch.equal(at_level(x[token : token + 1], weight, bias, level), together[token : token + 1])
    some = at_level(x[1:], weight[:-1], bias[:-1], level) if len(weight) > 1 else None
    assert some is None or torch.equal(some, together[1:, :-1])


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: native.LEVELS[level])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_that_is_not_finite_leaves_the_others_alone(dtype, level):
    x, weight, bias = make(9, 21, 70, dtype)
    good = at_level(x, weight, bias, level)
    x[2, 69], x[5, 0] = torch.nan, torch.inf
    out = at_level(x, weight, bias, level)
    assert out[2].isnan().all()
    assert not out[5].isfinite().any()
    rest = [0, 1, 3, 4, 6, 7, 8]
    assert torch.equal(out[rest], good[rest])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_alignment_will_do(dtype):
    """Weights lie where a file has them."""
    x, weight, bias = make(5, 19, 45, dtype)
    apart = []
    for tensor in (x, weight, bias):
        room = torch.empty(tensor.numel() + 1, dtype=dtype)
        apart.append(room[1:].view(tensor.shape).copy_(tensor))
    for level in LEVELS:
        assert torch.equal(at_level(*apart, level), at_level(x, weight, bias, level))


def test_no_tokens_are_no_outputs():
    with torch.inference_mode():
        assert linear(torch.empty(0, 7), torch.ones(5, 7), None).shape == (0, 5)


def test_leading_dimensions_are_kept():
    x, weight, bias = make(12, 6, 10, torch.float32)
    with torch.inference_mode():
        assert torch.equal(linear(x.view(3, 4, 10), weight, bias), linear(x, weight, bias).view(3, 4, 6))


def test_outside_of_inference_it_is_pytorchs_and_has_gradients():
    x, weight, bias = make(3, 5, 7, torch.float32)
    weight.requires_grad_()
    linear(x, weight, bias).sum().backward()
    assert torch.allclose(weight.grad, x.sum(0).expand(5, 7))


def test_threads_that_call_at_once_get_what_each_gets_alone():
    jobs = [make(4, 300, 200, torch.float32) for _ in range(4)]
    alone = [at_level(*job, native.level()) for job in jobs]
    start = threading.Barrier(len(jobs))

    def run(job):
        start.wait()
        return [at_level(*job, native.level()) for _ in range(200)]

    with ThreadPoolExecutor(len(jobs)) as pool:
        for expected, results in zip(alone, pool.map(run, jobs), strict=True):
            assert all(torch.equal(result, expected) for result in results)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_computes_too():
    """It has none of the threads that its parent had."""
    job = make(4, 300, 200, torch.float32)
    expected = at_level(*job, native.level(), threads=3)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(at_level(*job, native.level(), threads=3), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(at_level(*job, native.level(), threads=3), expected)
