"""On a GPU: the same tokens as on the CPU."""

import numpy as np
import pytest
import torch

from attending import hard_vectors, rounded
from bloomery import LLM, SamplingParams
from bloomery.ops.kept import round_vectors
from talker import build_talker

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
PROMPTS = ([5, 6, 7], list(range(4, 74)), [9], list(range(4, 304)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_talker(tmp_path_factory.mktemp("gpu") / "talker")


WAYS = {
    "greedy": {},
    "sampled": {"temperature": 0.9, "seed": 3},
    "guided": {"guidance_scale": 2.0, "negative_prompt_ids": [8, 9, 10]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
}


@pytest.mark.parametrize("params", WAYS.values(), ids=WAYS)
def test_fp32_tokens_on_a_gpu_equal_those_on_a_cpu(folder, params):
    wanted = SamplingParams(max_new_tokens=40, ignore_eos=True, **params)
    sides = [LLM(folder, device=device).generate(PROMPTS, wanted) for device in ("cpu", "cuda")]
    assert [done.token_ids for done in sides[0]] == [done.token_ids for done in sides[1]]


def test_fp32_logits_on_a_gpu_equal_those_on_a_cpu(folder):
    cpu, gpu = (LLM(folder, device=device).logits(PROMPTS[3]).cpu() for device in ("cpu", "cuda"))
    assert (cpu - gpu).abs().max() <= 1e-5 * max(1, cpu.abs().max())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_on_a_gpu_is_near_fp32(folder, dtype):
    exact = LLM(folder, device="cuda").logits(PROMPTS[3])
    near = LLM(folder, device="cuda", dtype=dtype).logits(PROMPTS[3])
    assert near.isfinite().all()
    assert (near - exact).abs().mean() <= 0.05 * exact.std()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_and_values_in_8_bits_on_a_gpu_are_near_exact_ones(folder, dtype):
    exact, near = (LLM(folder, device="cuda", dtype=dtype, cache_dtype=kept) for kept in (dtype, "int8"))
    assert (
        0 < (near.logits(PROMPTS[3]) - exact.logits(PROMPTS[3])).abs().mean() <= 0.05 * exact.logits(PROMPTS[3]).std()
    )
    wanted = SamplingParams(max_new_tokens=40, ignore_eos=True)
    assert all(len(done.token_ids) == 40 for done in near.generate(PROMPTS, wanted))


@pytest.mark.parametrize("size", [1, 37, 64])
def test_a_gpu_rounds_to_the_same_8_bits(size):
    x = hard_vectors(size)
    for got, expected in zip(round_vectors(x.cuda()), rounded(x), strict=True):
        np.testing.assert_array_equal(got.cpu().numpy(), expected)


@pytest.mark.parametrize("quant", ["int8", "int4", "int4-g128"])
def test_packed_weights_on_a_gpu_equal_those_on_a_cpu(folder, quant):
    cpu, gpu = (LLM(folder, device=device, quant=quant).logits(PROMPTS[3]).cpu() for device in ("cpu", "cuda"))
    assert (cpu - gpu).abs().max() <= 1e-5 * max(1, cpu.abs().max())
