"""On a GPU: the same tokens as on the CPU."""

import pytest
import torch

from bloomery import LLM, SamplingParams
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


@pytest.mark.parametrize("quant", ["int8", "int4", "int4-g128"])
def test_packed_weights_on_a_gpu_equal_those_on_a_cpu(folder, quant):
    cpu, gpu = (LLM(folder, device=device, quant=quant).logits(PROMPTS[3]).cpu() for device in ("cpu", "cuda"))
    assert (cpu - gpu).abs().max() <= 1e-5 * max(1, cpu.abs().max())
