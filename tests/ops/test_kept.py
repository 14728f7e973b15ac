"""What 8 bits keep of keys and values, and how it is written and read, against numpy and the formula's own bounds."""

import numpy as np
import pytest
import torch

from attending import BF16, F32, INT8, hard_vectors, rounded
from bloomery.ops.attention import BLOCK, Span, attend_blocks, group_spans
from bloomery.ops.kept import Kept, round_vectors, vector_bytes
from bloomery.ops.position import AttentionRule

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [F32, BF16, torch.float16])
@pytest.mark.parametrize("size", [1, 3, 16, 37, 64, 130])
def test_rounding_equals_numpys_bit_by_bit(size: int, dtype: torch.dtype) -> None:
    x = hard_vectors(size).to(dtype)
    for got, expected in zip(round_vectors(x), rounded(x), strict=True):
        assert got.numpy().dtype == expected.dtype
        np.testing.assert_array_equal(got.numpy(), expected)


def test_a_tie_goes_to_the_even_number() -> None:
    halves = torch.tensor([127.0, 0.5, 1.5, -0.5, -1.5, 2.5, 125.5, 126.5])
    numbers, scale = round_vectors(halves)
    assert scale == 1
    assert numbers.tolist() == [127, 0, 2, 0, -2, 2, 126, 126]


def test_what_is_kept_is_within_half_a_scale() -> None:
    """A scale is rounded once, and so is a quotient: together at most 127 * 2^-23 of a scale."""
    x = torch.randn(5000, 64, generator=torch.Generator().manual_seed(1)) * torch.logspace(-20, 20, 5000)[:, None]
    numbers, scales = (part.double() for part in round_vectors(x))
    off = (numbers * scales[:, None] - x.double()).abs() / scales[:, None]
    assert off.max() <= 0.5 + 127 * 2**-23
    assert off.max() > 0.499
    assert (numbers.abs().amax(-1) == 127).all()


def test_zeros_are_kept_as_zeros_and_a_vector_that_is_not_finite_as_nothing_but_nan() -> None:
    x = torch.ones(4, 8)
    x[0], x[1, 3], x[2, 5] = 0, torch.nan, -torch.inf
    kept = Kept.empty((1, 1, BLOCK, 8), INT8, CPU)
    kept.write(torch.arange(4), x[:, None])
    back = kept.read(slice(0, 1), F32)[0, 0, :4]
    assert (back[0] == 0).all()
    assert back[1].isnan().all()
    assert back[2].isnan().all()
    torch.testing.assert_close(back[3], x[3])


@pytest.mark.parametrize("layers", [(), (3,)], ids=["a layer", "three"])
@pytest.mark.parametrize("dtype", [F32, BF16, INT8])
def test_what_is_written_is_read_there_and_nothing_else_changes(layers: tuple[int, ...], dtype: torch.dtype) -> None:
    kept = Kept.empty((*layers, 4, 2, BLOCK, 5), dtype, CPU)
    for tensor in kept.tensors:
        tensor.fill_(7)
    x = torch.randn(*layers, 3, 2, 5)
    kept.write(torch.tensor([2 * BLOCK + 1, 5, 3 * BLOCK]), x)
    layer, x = (kept, x) if not layers else (kept.layer(1), x[1])
    blocks = layer.read(torch.tensor([2, 0, 3]), F32)
    for block, position, one in ((0, 1, 0), (1, 5, 1), (2, 0, 2)):
        numbers, scales = round_vectors(x[one])
        expected = numbers * scales[:, None] if dtype == INT8 else x[one].to(dtype)
        assert torch.equal(blocks[block, :, position], expected)
        blocks[block, :, position] = 49 if dtype == INT8 else 7
    assert (blocks == (49 if dtype == INT8 else 7)).all()


@pytest.mark.parametrize("dtype", [F32, BF16, INT8])
def test_bytes_are_those_of_the_tensors(dtype: torch.dtype) -> None:
    assert Kept.empty((3, 2, BLOCK, 37), dtype, CPU).nbytes == 3 * BLOCK * 2 * vector_bytes(37, dtype)


@pytest.mark.parametrize("softmax", [None, F32, BF16])
def test_pytorchs_attention_computes_in_fp32_what_8_bits_stand_for(softmax: torch.dtype | None) -> None:
    """As if these numbers had been kept in fp32, bit by bit, whatever the query's dtype."""
    kept = [Kept.empty((4, 2, BLOCK, 8), INT8, CPU) for _ in range(2)]
    for one in kept:
        for tensor in one.tensors:
            tensor.zero_()
        one.write(torch.arange(4 * BLOCK), torch.randn(4 * BLOCK, 2, 8))
    plain = [Kept(one.read(slice(0, 4), F32)) for one in kept]
    groups = group_spans([Span(80, 10, (3, 1)), Span(5, 1, (0,))], AttentionRule(shared=2), CPU, together=False)
    for dtype in (F32, BF16):
        query = torch.randn(11, 4, 8).to(dtype)
        got = attend_blocks(query, *kept, groups, softmax)
        assert got.dtype == dtype
        assert torch.equal(got, attend_blocks(query, *plain, groups, softmax))
