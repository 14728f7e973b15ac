"""Packed bytes are those that the format's own words give, written down again here as plain loops over numbers."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bloomery.errors import CheckpointError, UsageError
from bloomery.quant import pack as packing
from bloomery.quant.pack import pack, scales, unpack
from bloomery.quant.scheme import SCHEMES, Scheme, scheme_named

SIZES = [(1, 1), (16, 128), (17, 33), (15, 127), (33, 129), (50, 24), (48, 256), (3, 1000), (0, 40)]
schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


def weight(outputs: int, inputs: int, seed: int = 0) -> Tensor:
    """Rows and columns of very different sizes, among them a row and a column of zeros."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(outputs, inputs, generator=generator)
    numbers *= torch.logspace(-3, 3, max(1, outputs))[:outputs, None]
    numbers[1:2] = 0
    numbers[:, 5:6] = 0
    return numbers


def bf16(number: np.float32) -> np.float32:
    """To the nearest, ties to even: of its 32 bits the upper half stays."""
    bits = int(np.float32(number).view(np.uint32))
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return np.uint32(rounded & 0xFFFFFFFF).view(np.float32)


def rounded(value: np.float32, scale: np.float32, least: int, most: int) -> int:
    return 0 if scale == 0 else int(np.clip(np.rint(value / scale), least, most))


def by_the_words(given: Tensor, bits: int, group: int | None) -> bytes:
    """A weight's bytes, panel by panel, one number after the other."""
    w = given.float().numpy()
    outputs, inputs = w.shape
    step = group or 128
    kept = -(-inputs // step) * step
    filled = np.zeros((-(-outputs // 16) * 16, kept), np.float32)
    filled[:outputs, :inputs] = w
    out = bytearray()
    for first in range(0, len(filled), 16):
        panel = filled[first : first + 16]
        if bits == 8:
            scale = [np.float32(max(abs(value) for value in row)) / np.float32(127) for row in panel]
            out += b"".join(np.float32(one).tobytes() for one in scale)
            for b in range(kept // 4):
                for r in range(16):
                    out += bytes(rounded(panel[r][4 * b + j], scale[r], -127, 127) % 256 for j in range(4))
            continue
        assert group is not None
        for g in range(kept // group):
            values = panel[:, g * group : (g + 1) * group]
            scale = [bf16(row[int(np.argmax(np.abs(row)))] / np.float32(-8)) + np.float32(0) for row in values]
            out += b"".join(int(one.view(np.uint32) >> 16).to_bytes(2, "little") for one in scale)
            for b in range(group // 8):
                for r in range(16):
                    for j in range(4):
                        low = rounded(values[r][8 * b + j], scale[r], -8, 7) + 8
                        high = rounded(values[r][8 * b + 4 + j], scale[r], -8, 7) + 8
                        out.append(low | high << 4)
    return bytes(out)


@schemes
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bytes_are_those_of_the_words(scheme: Scheme, size: tuple[int, int], dtype: torch.dtype) -> None:
    given = weight(*size).to(dtype)
    packed = pack(given, scheme)
    assert packed.dtype == torch.uint8
    assert tuple(packed.shape) == scheme.packed_shape(*size)
    assert packed.numpy().tobytes() == by_the_words(given, scheme.bits, scheme.group)


def half_step(given: Tensor, scheme: Scheme) -> Tensor:
    """What rounding may take from each number: half a step of its scale; of 4 bits half a step more at the end that is
    cut off at 7, and what 8 steps lose where the scale is rounded to bf16."""
    if scheme.group is None:
        return (given.abs().amax(1, keepdim=True) / 127 * 0.5).expand_as(given)
    padded = torch.nn.functional.pad(given, (0, -given.shape[1] % scheme.group))
    largest = padded.unflatten(1, (-1, scheme.group)).abs().amax(2, keepdim=True)
    step = (largest / 8).expand(-1, -1, scheme.group).flatten(1)[:, : given.shape[1]]
    return step * (1 + 8 / 256)


@schemes
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_what_comes_back_is_as_near_as_the_steps_allow(scheme: Scheme, size: tuple[int, int]) -> None:
    given = weight(*size)
    back = unpack(pack(given, scheme), scheme, *size)
    assert back.dtype == torch.float32
    assert back.shape == given.shape
    assert bool(((back - given).abs() <= half_step(given, scheme) * (1 + 1e-5)).all())
    assert torch.equal(back[1:2], given[1:2]), "zeros are kept"


@schemes
def test_on_normal_numbers_the_error_is_that_of_so_many_bits(scheme: Scheme) -> None:
    given = weight(256, 1024)[2:] / torch.logspace(-3, 3, 256)[2:, None]
    error = float((unpack(pack(given, scheme), scheme, *given.shape) - given).norm() / given.norm())
    low, high = {"int8": (0.005, 0.011), "int4": (0.07, 0.10), "int4-g128": (0.08, 0.13)}[scheme.name]
    assert low < error < high


@schemes
@pytest.mark.parametrize("at_once", [1, 3000, 10_000])
def test_slices_do_not_show(scheme: Scheme, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = weight(70, 200)
    whole = pack(given, scheme)
    monkeypatch.setattr(packing, "AT_ONCE", at_once)
    assert torch.equal(pack(given, scheme), whole)
    parts = list(packing.unpacked_slices(whole, scheme, 70, 200))
    assert [row for rows, _ in parts for row in rows] == list(range(70))
    assert torch.equal(torch.cat([part for _, part in parts]), unpack(whole, scheme, 70, 200))


@schemes
def test_how_the_numbers_lie_in_memory_does_not_matter(scheme: Scheme) -> None:
    given = weight(40, 72)
    assert torch.equal(pack(given.T.contiguous().T, scheme), pack(given, scheme))
    assert torch.equal(pack(torch.cat([given, given], 1)[:, 72:], scheme), pack(given, scheme))


@schemes
@pytest.mark.parametrize("largest", [3e38, 1e-38, 1e-44, 1.4e-45, 0.0])
def test_numbers_of_any_size_stay_finite_and_keep_their_sign(scheme: Scheme, largest: float) -> None:
    given = torch.tensor([[largest, -largest, largest / 2, 0.0]]).repeat(3, 40)
    back = unpack(pack(given, scheme), scheme, *given.shape)
    assert bool(back.isfinite().all())
    assert bool((back * given >= 0).all())


@schemes
def test_a_scale_of_zero_has_no_sign(scheme: Scheme) -> None:
    packed = pack(torch.zeros(5, 40), scheme)
    assert not scales(packed, scheme).contiguous().view(torch.uint8).any()


@schemes
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [(0, 0), (69, 199), (40, 130)])
def test_numbers_that_are_none_are_refused(
    scheme: Scheme, number: float, place: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "AT_ONCE", 3000)  # not all of it in one slice
    given = weight(70, 200).bfloat16()
    given[place] = number
    with pytest.raises(
        CheckpointError, match=f"^here: 1 numbers are NaN or infinite, which {scheme.name} has no place"
    ):
        pack(given, scheme, "here")


@schemes
def test_the_size_of_a_panel_is_as_promised(scheme: Scheme) -> None:
    assert scheme.packed_shape(4096, 4096)[0] == 256
    total = scheme.packed_shape(4096, 4096)[0] * scheme.packed_shape(4096, 4096)[1]
    assert 8 * total / 4096**2 == pytest.approx(scheme.bits_per_weight, rel=1e-2)
    assert {"int8": 8.0, "int4": 4.5, "int4-g128": 4.125}[scheme.name] == scheme.bits_per_weight


def test_a_name_that_is_no_scheme_is_refused_with_the_nearest() -> None:
    assert scheme_named("none") is None
    assert scheme_named("int4") is SCHEMES["int4"]
    with pytest.raises(UsageError, match="quant is 'in8', which is no scheme: did you mean 'int8'"):
        scheme_named("in8")
    with pytest.raises(UsageError, match="give one of none, int8, int4, int4-g128"):
        scheme_named("nf4-double")


@schemes
def test_bytes_of_another_size_are_not_unpacked(scheme: Scheme) -> None:
    packed = pack(weight(20, 40), scheme)
    with pytest.raises(ValueError, match="20 × 400"):
        unpack(packed, scheme, 20, 400)
