"""Which attention a step gets, and what keys and values are kept in for it."""

from dataclasses import replace

import pytest
import torch

from bloomery.errors import UsageError
from bloomery.model.cache import Beginning, CachedAttention, KVCache, kv_dtype
from bloomery.model.config import DecoderConfig
from bloomery.ops import native
from bloomery.ops.attention import BLOCK, Span
from bloomery.ops.kept import round_vectors
from bloomery.ops.position import AttentionRule

CPU = torch.device("cpu")
CONFIG = DecoderConfig(
    vocab_size=10,
    hidden_size=32,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_size=32,
    max_seq_len=128,
    positions="learned",
)
built = pytest.mark.skipif(native.library() is None, reason="this build has no compiled library")


def attend(kept: torch.dtype, softmax: torch.dtype | None = None) -> CachedAttention:
    cache = KVCache(CONFIG, 2, kept, CPU)
    cache.clear([0, 1])
    return CachedAttention(cache, [Span(0, 70, (1, 0))], AttentionRule(shared=2), softmax)


@built
@torch.inference_mode()
def test_our_kernel_runs_where_it_computes_what_was_asked_for() -> None:
    for kept in (torch.float32, torch.bfloat16, torch.int8):
        assert attend(kept).plan is not None
        assert attend(kept, torch.float32).plan is not None
        assert attend(kept, torch.bfloat16).plan is None
    assert attend(torch.float16).plan is None


@torch.no_grad()
def test_pytorchs_attention_runs_outside_of_inference() -> None:
    assert attend(torch.float32).plan is None


@torch.inference_mode()
def test_pytorchs_attention_runs_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    assert attend(torch.float32).plan is None


@built
@torch.inference_mode()
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_attend_alike(kept: torch.dtype, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (torch.randn(70, heads, 8).to(dtype) for heads in (4, 2, 2))
    ours = attend(kept)(0, query, key, value)
    monkeypatch.setattr(native, "library", lambda: None)
    theirs = attend(kept)(0, query, key, value)
    assert ours.dtype == theirs.dtype == dtype
    # PyTorch's rounds to what is kept in bf16; of int8 both have the same numbers in fp32, and round what they give.
    exact = kept == dtype == torch.float32 or kept == torch.int8
    close = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype] if exact else 2e-2
    torch.testing.assert_close(ours, theirs, rtol=close, atol=close)


def test_keys_and_values_are_kept_in_the_models_dtype_where_our_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.library() is not None:
        assert kv_dtype(torch.bfloat16, CPU) == torch.bfloat16
        assert kv_dtype(torch.float32, CPU) == torch.float32
    assert kv_dtype(torch.float16, CPU) == torch.float32
    assert kv_dtype(torch.bfloat16, torch.device("cuda")) == torch.bfloat16
    monkeypatch.setattr(native, "library", lambda: None)
    assert kv_dtype(torch.bfloat16, CPU) == torch.float32


def pools(cache: KVCache) -> list[torch.Tensor]:
    return [*cache.keys.tensors, *cache.values.tensors]


DTYPES = [torch.float32, torch.bfloat16, torch.int8]


def filled(dtype: torch.dtype) -> KVCache:
    """Four blocks of two layers, each block's numbers its own."""
    cache = KVCache(replace(CONFIG, num_layers=2), 4, dtype, CPU)
    for block in range(4):
        for pool in pools(cache):
            pool[:, block] = block + 1
    return cache


@pytest.mark.parametrize("dtype", DTYPES)
def test_copied_blocks_are_the_same_to_the_last_scale_and_the_others_stay(dtype: torch.dtype) -> None:
    cache = filled(dtype)
    assert len(pools(cache)) == (4 if dtype == torch.int8 else 2)
    cache.copy([(1, 3), (0, 2)])
    for pool in pools(cache):
        for block, number in enumerate((1, 2, 1, 2)):
            assert (pool[:, block] == number).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_cleared_blocks_are_zeros_to_the_last_scale_and_the_others_stay(dtype: torch.dtype) -> None:
    cache = filled(dtype)
    for pool in pools(cache):
        pool[:, 2] = torch.nan if pool.is_floating_point() else 77
    cache.clear([2, 0])
    for pool in pools(cache):
        for block, number in enumerate((0, 2, 0, 4)):
            assert (pool[:, block] == number).all()


def test_a_beginning_is_rounded_like_what_follows_it() -> None:
    cache = filled(torch.int8)
    first = Beginning(*torch.randn(2, 2, BLOCK + 3, 2, 8))
    cache.begin((3, 1), first)
    for kept, x in ((cache.keys, first.keys), (cache.values, first.values)):
        for pool, part in zip(kept.tensors, round_vectors(x), strict=True):
            assert torch.equal(pool[:, 3], part[:, :BLOCK].transpose(1, 2))
            assert torch.equal(pool[:, 1, :, :3], part[:, BLOCK:].transpose(1, 2))
            assert (pool[:, [0, 2]] == torch.tensor([1, 3]).view(2, *[1] * (pool.ndim - 2))).all()
            assert (pool[:, 1, :, 3:] == 2).all()


@built
@torch.inference_mode()
def test_both_keep_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (torch.randn(70, heads, 8) for heads in (4, 2, 2))
    ours, theirs = attend(torch.int8), attend(torch.int8)
    ours(0, query, key, value)
    monkeypatch.setattr(native, "library", lambda: None)
    attended = CachedAttention(theirs.cache, [Span(0, 70, (1, 0))], AttentionRule(shared=2))
    assert attended.plan is None
    attended(0, query, key, value)
    assert all(map(torch.equal, pools(ours.cache), pools(theirs.cache)))


@pytest.mark.parametrize(("dtype", "number"), [(torch.float32, 8 * 4), (torch.bfloat16, 8 * 2), (torch.int8, 8 + 4)])
def test_memory_that_cannot_be_had_is_said_with_its_size(
    dtype: torch.dtype, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*shape: object, **how: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "empty", none)
    blocks = 10**9 // BLOCK
    gigabytes = 2 * 1 * blocks * BLOCK * 2 * number / 1e9  # of keys and values: layers, positions, heads, bytes
    with pytest.raises(UsageError, match=rf"^{gigabytes:.1f} GB for keys and values of {blocks * BLOCK} positions"):
        KVCache(CONFIG, blocks, dtype, CPU)
