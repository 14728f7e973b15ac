"""An engine does what its options say: dtypes, limits, warm-up, compilation."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bloomery import LLM, SamplingParams, UsageError
from bloomery.engine.options import EngineArguments
from bloomery.model.decoder import Decoder
from bloomery.ops import native
from conftest import Tiny

PARAMS = SamplingParams(max_new_tokens=12)
LENGTHS = (5, 70, 3, 130)


def texts(llm: LLM, prompts: list[list[int]], params: SamplingParams = PARAMS) -> list[tuple[int, ...]]:
    return [done.token_ids for done in llm.generate(prompts, params)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_keys_and_values_are_kept_in_the_dtype_asked_for(either: Tiny, dtype: Any) -> None:
    llm, ids = LLM(either.path, dtype="float32", cache_dtype=dtype), either.prompt(100)
    cache = llm.engine.runner.cache
    assert cache.keys.numbers.dtype == cache.values.numbers.dtype == cache.dtype == getattr(torch, dtype)
    off = float((llm.logits(ids) - either.logits(ids)).abs().max() / either.logits(ids).abs().max())
    bits = {"float32": 2**-17, "float16": 2**-8, "bfloat16": 2**-5, "int8": 2**-4}[dtype]
    assert off < bits
    assert dtype == "float32" or off > bits / 2**10


def test_a_cpu_keeps_the_models_dtype_where_there_are_kernels_for_it(
    bloom: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native.library() is not None:
        assert LLM(bloom.path, dtype="bfloat16").engine.runner.cache.keys.numbers.dtype == torch.bfloat16
    monkeypatch.setattr(native, "library", lambda: None)
    assert LLM(bloom.path, dtype="bfloat16").engine.runner.cache.keys.numbers.dtype == torch.float32


def test_pytorchs_attention_to_8_bits_gives_what_our_own_does(either: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """But where numbers that differ in their last bits are rounded to another step of their scale."""
    ids = either.prompt(100)
    ours = LLM(either.path, cache_dtype="int8").logits(ids)
    monkeypatch.setattr(native, "library", lambda: None)
    theirs = LLM(either.path, cache_dtype="int8").logits(ids)
    exact, largest = either.logits(ids), either.logits(ids).abs().max()
    assert (ours - theirs).abs().mean() <= 0.05 * (ours - exact).abs().mean()
    assert (ours - theirs).abs().max() <= 2**-6 * largest


@pytest.mark.skipif(native.library() is None, reason="the library was not built")
def test_with_keys_and_values_in_8_bits_all_of_a_step_is_our_own_and_recorded(bloom: Tiny) -> None:
    for dtype in ("float32", "bfloat16"):
        llm = LLM(bloom.path, dtype=dtype, cache_dtype="int8")
        assert llm.engine.runner.native
        texts(llm, [bloom.prompt(20)])
        assert set(llm.engine.runner.recorded._steps) == {1}
        assert not LLM(bloom.path, dtype=dtype, cache_dtype="float16").engine.runner.native


def test_a_softmax_in_bfloat16_is_not_forced_off_in_fp32(either: Tiny) -> None:
    ids = either.prompt(100)
    exact, rounded = (LLM(either.path, softmax_dtype=dtype).logits(ids) for dtype in ("float32", "bfloat16"))
    largest = either.logits(ids).abs().max()
    assert (exact - either.logits(ids)).abs().max() <= 1e-5 * largest
    assert 1e-4 * largest < (rounded - exact).abs().max() < 0.1 * largest


def test_a_limit_of_positions_makes_requests_wait_and_changes_no_token(bloom: Tiny) -> None:
    prompts = [bloom.prompt(length) for length in (*LENGTHS, 62, 63)]
    llm = LLM(bloom.path, max_batch_size=6, cache_positions=250)
    assert llm.engine.scheduler.pool.size == 4
    assert texts(llm, prompts) == [tuple(bloom.greedy(ids)[:12]) for ids in prompts]
    assert llm.engine.scheduler.preempted > 0
    with pytest.raises(UsageError, match=r"does not fit a cache of 256: shorten it, or raise cache_positions"):
        llm.generate([bloom.prompt(260)], PARAMS)


def test_more_positions_than_can_be_needed_are_not_reserved(bloom: Tiny) -> None:
    assert LLM(bloom.path, max_batch_size=2, max_seq_len=128, cache_positions=10**9).engine.scheduler.pool.size == 4


@pytest.mark.parametrize("kind", ["static", "bucket", "dynamic"])
def test_warming_up_says_how_long_it_took(bloom: Tiny, kind: Any, log: list[str]) -> None:
    warm = LLM(bloom.path, warmup=True, shapes=kind)
    (line,) = [line for line in log if "warmed up" in line]
    count = {"static": 3, "bucket": 13, "dynamic": 3}[kind]
    assert line.startswith(f"warmed up {count} shapes of a step in ")
    assert line.endswith(" s")
    assert texts(warm, [bloom.prompt(70)]) == [tuple(bloom.greedy(bloom.prompt(70))[:12])]
    LLM(bloom.path, shapes=kind)
    assert len([line for line in log if "warmed up" in line]) == 1


def test_prompts_of_many_lengths_follow_each_other(bloom: Tiny) -> None:
    """A cache that is used again holds nothing of the text before, and fits a text of another length."""
    llm = LLM(bloom.path, shapes="static", max_batch_size=2)
    for length in (130, 3, 64, 65, 1, 130):
        assert texts(llm, [bloom.prompt(length)]) == [tuple(bloom.greedy(bloom.prompt(length))[:12])]


@pytest.mark.parametrize("kind", ["static", "bucket"])
def test_rules_count_and_see_no_padding(bloom: Tiny, kind: Any) -> None:
    """With token 0, which padding is made of, as the likeliest: no penalty finds it, and no length counts it."""
    ids = [token or 1 for token in bloom.prompt(20)]
    llm = LLM(bloom.path, shapes=kind)
    for rule in ({"repetition_penalty": 1e6}, {"no_repeat_ngram_size": 1}, {"encoder_no_repeat_ngram_size": 1}):
        first = SamplingParams(max_new_tokens=1, logit_bias={0: 100.0}, **rule)
        assert texts(llm, [ids], first) == [(0,)]
    ends = SamplingParams(max_new_tokens=30, min_length=30, logit_bias={0: 100.0}, forced_eos_token_id=0)
    assert len(texts(llm, [ids], ends)[0]) == 30


FAMILIES = ("bloom-6-heads", "mixtral-2-of-4", "falcon-40b-like")
# What torch's compiler says of itself:
quiet = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")


@pytest.mark.slow
@quiet
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["static", "bucket", "dynamic"])
def test_code_is_made_a_bounded_number_of_times(tiny: Any, name: str, kind: Any) -> None:
    """For a few lengths, and then for no other; no function is given up, and no token is another."""
    checkpoint: Tiny = tiny(name)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    options: EngineArguments = {"max_batch_size": 3, "max_step_tokens": 256, "shapes": kind}
    compiled, made = LLM(checkpoint.path, compile=True, **options), []
    for lengths in ((1,), (3, 40), (64, 65, 130), (200, 7, 9, 33), (300, 12, 17, 18), (41, 42, 43, 44, 45, 46)):
        prompts = [checkpoint.prompt(length) for length in lengths]
        assert texts(compiled, prompts) == [tuple(checkpoint.greedy(ids)[:12]) for ids in prompts]
        made.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 5 <= made[1] <= 12  # one of them is no part of a block
    assert made[2:] == [made[1]] * 4
    assert torch._dynamo.utils.counters["frames"]["total"] == torch._dynamo.utils.counters["frames"]["ok"]


@pytest.mark.slow
@quiet
def test_what_is_warmed_up_is_not_compiled_again(bloom: Tiny) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    llm = LLM(bloom.path, compile=True, warmup=True, shapes="static", max_batch_size=3)
    made = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    texts(llm, [bloom.prompt(length) for length in LENGTHS])
    assert made == torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 5


@pytest.mark.slow
def test_without_a_compiler_compile_is_refused_in_one_line(tmp_path: Path) -> None:
    here = os.environ | {"CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    argv = [sys.executable, "-m", "bloomery", "generate", "It was", "--compile", "--max-new-tokens", "2"]
    done = subprocess.run(argv, env=here, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "torch.compile does not work here (" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith("): install a C++ compiler, or drop compile")


def test_a_draft_is_warmed_up_too(bloom: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Decoder] = []
    forward = Decoder.forward

    def watched(self: Decoder, *rest: Any) -> torch.Tensor:
        ran.append(self)
        return forward(self, *rest)

    monkeypatch.setattr(Decoder, "forward", watched)
    llm = LLM(bloom.path, draft=bloom.path, warmup=True)
    assert {id(model) for model in ran} == {id(llm.decoder), id(llm.draft)}
