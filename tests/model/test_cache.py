"""Which attention a step gets, and what keys and values are kept in for it."""

import pytest
import torch

from bloomery.model.cache import CachedAttention, KVCache, kv_dtype
from bloomery.model.config import DecoderConfig
from bloomery.ops import native
from bloomery.ops.attention import Span
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
    for kept in (torch.float32, torch.bfloat16):
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
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_attend_alike(kept: torch.dtype, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (torch.randn(70, heads, 8).to(dtype) for heads in (4, 2, 2))
    ours = attend(kept)(0, query, key, value)
    monkeypatch.setattr(native, "library", lambda: None)
    theirs = attend(kept)(0, query, key, value)
    assert ours.dtype == theirs.dtype == dtype
    close = 1e-5 if kept == dtype == torch.float32 else 2e-2  # PyTorch's rounds to what is kept
    torch.testing.assert_close(ours, theirs, rtol=close, atol=close)


def test_keys_and_values_are_kept_in_the_models_dtype_where_our_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.library() is not None:
        assert kv_dtype(torch.bfloat16, CPU) == torch.bfloat16
        assert kv_dtype(torch.float32, CPU) == torch.float32
    assert kv_dtype(torch.float16, CPU) == torch.float32
    assert kv_dtype(torch.bfloat16, torch.device("cuda")) == torch.bfloat16
    monkeypatch.setattr(native, "library", lambda: None)
    assert kv_dtype(torch.bfloat16, CPU) == torch.float32
