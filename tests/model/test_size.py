"""What size.py computes from a configuration is what a decoder, a cache and a step are measured to take."""

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from bloomery.checkpoint.folder import read_folder
from bloomery.model.cache import CachedAttention, KVCache, kv_dtype
from bloomery.model.config import DecoderConfig, RotaryConfig
from bloomery.model.decoder import Decoder
from bloomery.model.size import activation_bytes, bytes_read, kv_bytes, nbytes, parameter_count, weights_read
from bloomery.ops import native
from bloomery.ops.attention import BLOCK, Span
from bloomery.ops.choice import has_native
from tiny import Tiny

CPU = torch.device("cpu")
ALIBI = DecoderConfig(
    vocab_size=1000,
    hidden_size=256,
    num_layers=2,
    num_heads=8,
    num_kv_heads=8,
    head_dim=32,
    ffn_size=1024,
    max_seq_len=4096,
    positions="alibi",
    embed_norm=True,
)
LEARNED = replace(ALIBI, positions="learned", embed_norm=False)
ROTARY = replace(LEARNED, positions="rotary", rotary=RotaryConfig(dims=32))
GATED = replace(ROTARY, num_kv_heads=2, gated_mlp=True, norm="rms", attn_bias=False, mlp_bias=False, tied_head=False)
EXPERTS = replace(GATED, num_experts=4, experts_per_token=2)
PARALLEL = replace(ROTARY, num_kv_heads=1, residual="parallel_one_norm", head_bias=True, tied_head=False)
CONFIGS = {
    "alibi": ALIBI,
    "learned": LEARNED,
    "gated": GATED,
    "experts": EXPERTS,
    "parallel": PARALLEL,
    "two norms": replace(PARALLEL, residual="parallel"),
    "wide": replace(LEARNED, ffn_size=8192),
    "many tokens": replace(LEARNED, vocab_size=50_000),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def check_counts(config: DecoderConfig) -> None:
    with torch.device("meta"):
        decoder = Decoder(config)
    assert parameter_count(config) == sum(parameter.numel() for parameter in decoder.parameters())
    sizes = {name: parameter.nbytes for name, parameter in decoder.named_parameters()}
    assert bytes_read(config, sizes) == nbytes(weights_read(decoder))


@configs
def test_parameters_of_a_configuration_are_those_of_its_decoder(config: DecoderConfig) -> None:
    check_counts(config)


def test_parameters_of_every_family_are_those_of_its_decoder(checkpoint: Tiny) -> None:
    config = read_folder(checkpoint.path).config
    check_counts(config)
    assert parameter_count(config) == checkpoint.model.num_parameters()


@configs
@pytest.mark.parametrize(("positions", "sequences"), [(1, 1), (64, 1), (65, 3), (1000, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_cache_takes_what_is_computed(
    config: DecoderConfig, positions: int, sequences: int, dtype: torch.dtype
) -> None:
    cache = KVCache(config, sequences * -(-positions // BLOCK), dtype, CPU)
    assert kv_bytes(config, positions, sequences, dtype) == cache.keys.nbytes + cache.values.nbytes


def peak_of_a_step(decoder: Decoder, kept: torch.dtype, tokens: int, positions: int, logits: int) -> int:
    """Bytes that torch's allocator hands out for one step, at most at one time."""
    blocks = -(-positions // BLOCK)
    cache = KVCache(decoder.config, blocks, kept, CPU)
    cache.clear(list(range(blocks)))
    ids, places = torch.zeros(tokens, dtype=torch.long), torch.arange(positions - tokens, positions)
    spans = [Span(positions - tokens, tokens, tuple(range(blocks)))]

    def step() -> None:
        attend = CachedAttention(cache, spans, decoder.attention_rule)
        hidden = decoder(ids, places, attend, torch.arange(tokens - logits, tokens))
        del attend
        decoder.logits(hidden)

    with torch.inference_mode():
        step()  # what is made once is made
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            step()
    now = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@configs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tokens", "positions", "logits"), [(512, 512, 1), (256, 2048, 1), (64, 256, 64)])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("cache_dtype", [None, torch.int8], ids=["kept as computed", "kept in int8"])
def test_a_step_takes_about_what_is_computed(
    config: DecoderConfig,
    dtype: torch.dtype,
    tokens: int,
    positions: int,
    logits: int,
    compiled: bool,
    cache_dtype: torch.dtype | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "library", lambda: None)
    kept = cache_dtype or kv_dtype(dtype, CPU)
    taken = peak_of_a_step(Decoder(config).to(dtype).eval(), kept, tokens, positions, logits)
    ours = has_native(dtype, CPU)
    computed = activation_bytes(config, tokens, positions, dtype.itemsize, kept, logits, native=ours)
    assert 0.8 * taken < computed < 1.2 * taken
