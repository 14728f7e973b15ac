"""Native linear layers of packed weights against float64 and a packing written here from the format's words alone."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bloomery.ops import native
from bloomery.ops.native.calls import DTYPES, address, call
from bloomery.ops.packed import packed_linear

pytestmark = pytest.mark.skipif(native.library() is None, reason="the library was not built")
LEVELS = range(native.level() + 1 if native.library() else 0)
FORMATS = {"int8": (8, 128), "int4": (4, 32), "int4-g128": (4, 128)}
SHAPES = [(1, 16, 128), (3, 5, 7), (17, 33, 100), (130, 70, 129), (5, 3, 31), (9, 40, 1000)]
ROUNDING = {torch.float32: 3e-7, torch.bfloat16: 2**-8}


def packed_numbers(outputs: int, inputs: int, bits: int, group: int) -> tuple[Tensor, np.ndarray]:
    """Random whole numbers and scales -> the packed tensor, and the weights that it stands for."""
    random = np.random.default_rng(outputs + inputs)
    panels, groups = -(-outputs // 16), -(-inputs // group)
    most = 127 if bits == 8 else 7
    q = np.zeros((panels * 16, groups * group), np.int64)
    q[:outputs, :inputs] = random.integers(-most, most + 1, (outputs, inputs))
    scales = random.uniform(0.5, 2, (panels * 16, 1 if bits == 8 else groups)).astype(np.float32)
    if bits == 4:
        scales = torch.from_numpy(scales).bfloat16().float().numpy()
    rows = []
    for panel in range(panels):
        lines = range(panel * 16, panel * 16 + 16)
        row = b"".join(scales[line, 0].tobytes() for line in lines) if bits == 8 else b""
        for g in range(groups):
            if bits == 4:
                row += b"".join((scales[line, g].view(np.uint32) >> 16).astype(np.uint16).tobytes() for line in lines)
            for i in range(g * group, (g + 1) * group, 4 if bits == 8 else 8):
                for line in lines:
                    for j in range(4):
                        if bits == 8:
                            row += int(q[line, i + j]).to_bytes(1, "little", signed=True)
                        else:
                            row += bytes([(q[line, i + j] + 8) | (q[line, i + 4 + j] + 8) << 4])
        rows.append(list(row))
    weights = q * np.repeat(scales, q.shape[1] // scales.shape[1], 1)
    return torch.tensor(rows, dtype=torch.uint8), weights[:outputs, :inputs]


def rounded(x: Tensor, group: int) -> Tensor:
    """Tokens as they are to be rounded: by group, to 127 steps of the largest magnitude on each side of zero."""
    inputs = x.shape[1]
    padded = torch.nn.functional.pad(x.float(), (0, -inputs % group)).unflatten(1, (-1, group))
    scale = padded.abs().amax(2, keepdim=True) / 127
    steps = torch.where(scale > 0, padded * (1 / scale), 0).round()
    return (steps.double() * scale.double()).flatten(1)[:, :inputs]


def at_level(x, packed, bias, outputs, bits, group, level, threads=2):
    tokens, inputs = x.shape
    groups = -(-inputs // group)
    out = torch.full((tokens, outputs), torch.nan, dtype=x.dtype)
    room = torch.empty(tokens * groups * (group + 8), dtype=torch.uint8)
    addresses = address(x), address(packed), address(bias), address(out), address(room)
    fields = *addresses, tokens, outputs, inputs, bits, groups, group, packed.shape[1], DTYPES[x.dtype]
    call("packed", *fields, level=level, threads=threads)
    return out


def tokens(count, inputs, dtype):
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(count)).to(dtype)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: native.LEVELS[level])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64_of_rounded_tokens(shape, form, dtype, level):
    count, outputs, inputs = shape
    packed, weights = packed_numbers(outputs, inputs, *FORMATS[form])
    x, bias = tokens(count, inputs, dtype), tokens(1, outputs, dtype)[0]
    weight, near = torch.from_numpy(weights), rounded(x, FORMATS[form][1])
    exact = near @ weight.T + bias.double()
    # A number in the middle between two steps may go to either: as wide as its step.
    step = (x.double().abs().amax(1, keepdim=True) / 127) * weight.abs().amax(1)
    size = near.abs() @ weight.abs().T + bias.double().abs()
    out = at_level(x, packed, bias, outputs, *FORMATS[form], level)
    far = (out - exact).abs() > ROUNDING[dtype] * size
    assert far.sum() <= 0.02 * far.numel()
    assert ((out - exact).abs() <= ROUNDING[dtype] * size + 2 * step).all()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_depend_on_the_token_alone_and_not_on_the_instructions(shape, form):
    count, outputs, inputs = shape
    packed, _ = packed_numbers(outputs, inputs, *FORMATS[form])
    x, bias = tokens(count, inputs, torch.float32), tokens(1, outputs, torch.float32)[0]
    for level in LEVELS:
        together = at_level(x, packed, bias, outputs, *FORMATS[form], level)
        assert torch.equal(at_level(x, packed, bias, outputs, *FORMATS[form], level, threads=1), together)
        for token in range(count):
            alone = at_level(x[token : token + 1], packed, bias, outputs, *FORMATS[form], level)
            assert torch.equal(alone, together[token : token + 1])
        if level > 1:  # from AVX2 on a product and a sum are rounded once
            assert torch.equal(together, at_level(x, packed, bias, outputs, *FORMATS[form], 1))


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: native.LEVELS[level])
@pytest.mark.parametrize("form", FORMATS)
def test_a_token_that_is_not_finite_becomes_nan_and_leaves_the_others_alone(form, level):
    packed, _ = packed_numbers(21, 70, *FORMATS[form])
    x = tokens(9, 70, torch.float32)
    good = at_level(x, packed, None, 21, *FORMATS[form], level)
    x[2, 69], x[5, 0], x[6, 3] = torch.nan, torch.inf, -torch.inf
    out = at_level(x, packed, None, 21, *FORMATS[form], level)
    assert out[[2, 5, 6]].isnan().all()
    rest = [0, 1, 3, 4, 7, 8]
    assert torch.equal(out[rest], good[rest])


@pytest.mark.parametrize("form", FORMATS)
def test_zeros_and_the_largest_numbers_are_rounded_as_well(form):
    packed, weights = packed_numbers(16, 256, *FORMATS[form])
    x = torch.stack((torch.zeros(256), torch.full((256,), 1e38), torch.full((256,), 1e-38)))
    x[1, ::2] = 0
    out = at_level(x, packed, None, 16, *FORMATS[form], native.level())
    assert (out[0] == 0).all()
    exact = x[1].double() @ torch.from_numpy(weights).T
    assert torch.allclose(out[1].double(), exact, rtol=1e-5, atol=1e34) or not out[1].isfinite().all()
    assert (out[2].abs() < 1e-30).all()


def test_the_operation_keeps_leading_dimensions_and_takes_no_tokens():
    packed, _ = packed_numbers(6, 10, *FORMATS["int4"])
    x = tokens(12, 10, torch.bfloat16)
    with torch.inference_mode():
        flat = packed_linear(x, packed, None, 6, 10, *FORMATS["int4"])
        assert torch.equal(packed_linear(x.view(3, 4, 10), packed, None, 6, 10, *FORMATS["int4"]), flat.view(3, 4, 6))
        assert packed_linear(x[:0], packed, None, 6, 10, *FORMATS["int4"]).shape == (0, 6)
