"""Keys and values kept in 8 bits by our own attention: numpy's bits at every level, and errors that rounding allows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attending import BF16, F32, INT8, KINDS, LEVELS, Kind, Pool, Text, hard_vectors, rounded, whole
from bloomery.ops import native
from bloomery.ops.attention import BLOCK, Span

pytestmark = pytest.mark.skipif(native.library() is None, reason="this build has no compiled library")
levels = pytest.mark.parametrize("level", LEVELS, ids=[native.LEVELS[level] for level in LEVELS])
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@levels
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 37, 64, 80, 130])
def test_rounding_equals_numpys_bit_by_bit_at_every_level(size: int, dtype: torch.dtype, level: int) -> None:
    kind = Kind(heads=1, kv_heads=1, size=size, dtype=dtype, kept=INT8)
    vectors = hard_vectors(size).to(dtype)
    count = len(vectors)
    text, pool = Text(count, kind), Pool(kind)
    text.key, text.value = vectors[:, None], vectors.flip(0)[:, None]
    blocks = tuple(range(-(-count // BLOCK)))
    pool.step([text], [Span(0, count, blocks)], level=level)
    for kept, x in ((pool.keys, text.key), (pool.values, text.value)):
        for cached, expected in zip(kept.tensors, rounded(x), strict=True):
            np.testing.assert_array_equal(cached.transpose(1, 2).flatten(0, 1)[:count].numpy(), expected)


def allowed(text: Text) -> torch.Tensor:
    """(T, H, D): how far rounding can move an output from what exact keys and values give.

    Each number of a key moves by at most half of its scale s, so a score by at most |q|_1 s / 2 sqrt(D) =: e, and a
    weight by a factor between exp(-2 e) and exp(2 e), with the largest e of all keys seen. Each number of a value moves
    by half of its scale, and so does any mean of them.
    """
    shared, size = text.kind.rule.shared, text.kind.size
    keys, values = (torch.from_numpy(rounded(x)[1]).double() for x in (text.key, text.value))  # (T, K)
    keys, values = (x.cummax(0).values.repeat_interleave(shared, 1) for x in (keys, values))  # at least of those seen
    moved = text.query.double().abs().sum(-1) * keys / 2 / size**0.5  # (T, H)
    sizes = replace(text.kind, kept=F32)
    magnitudes = Text(len(text.query), sizes)
    magnitudes.query, magnitudes.key, magnitudes.value = text.query, text.key, text.value.abs()
    return torch.expm1(2 * moved)[..., None] * magnitudes.expected() + values[..., None] / 2


@levels
@kinds
def test_outputs_are_as_near_to_exact_ones_as_rounding_allows(kind: Kind, level: int) -> None:
    text = Text(150, replace(kind, kept=INT8))
    exact = Text(150, replace(kind, kept=F32))
    off = (whole(text.kind, text, level=level) - exact.expected()).abs()
    assert (off <= allowed(text) + 1e-5).all()
    assert off.max() > 1e-4 or kind.size == 1, "nothing was rounded"


@levels
@kinds
def test_means_of_values_are_within_half_a_scale(kind: Kind, level: int) -> None:
    """Of keys that do not matter: nothing but the values' own rounding is left."""
    text, exact = Text(150, replace(kind, kept=INT8)), Text(150, kind)
    text.query.zero_()
    exact.query.zero_()
    scales = torch.from_numpy(rounded(text.value)[1]).cummax(0).values.repeat_interleave(kind.rule.shared, 1)
    off = (whole(text.kind, text, level=level) - exact.expected()).abs()
    assert (off <= scales[..., None] * (0.5 + 1e-4)).all()


@levels
@kinds
def test_bits_of_an_output_are_those_of_the_numbers_kept_in_fp32(kind: Kind, level: int) -> None:
    """Number times scale, rounded to fp32, is all that attention knows of what is kept."""
    text = Text(150, replace(kind, kept=INT8))
    plain = Text(150, kind)
    for name in ("key", "value"):
        numbers, scales = rounded(getattr(text, name))
        setattr(plain, name, torch.from_numpy(numbers * scales[..., None]))
    assert torch.equal(whole(text.kind, text, level=level), whole(kind, plain, level=level))
