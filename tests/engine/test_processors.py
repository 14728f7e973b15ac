"""Each processor is Hugging Face's, and so is their order."""

import pytest
import torch
from transformers.generation import logits_process as hf

from bloomery import SamplingParams
from bloomery.engine.processors import build_processors

VOCABULARY = 300
PROMPT = torch.zeros(1, 4, dtype=torch.long)


def logits(seed):
    torch.manual_seed(seed)
    return torch.randn(VOCABULARY) * 4


def ours(params, scores, generated=0, eos=()):
    for process in build_processors(params, eos):
        scores = process(scores, generated)
    return scores


CASES = [
    ({"temperature": 0.7}, [hf.TemperatureLogitsWarper(0.7)]),
    ({"temperature": 1.0, "top_k": 7}, [hf.TopKLogitsWarper(7)]),
    ({"temperature": 1.0, "top_k": VOCABULARY + 5}, [hf.TopKLogitsWarper(VOCABULARY + 5)]),
    ({"temperature": 1.0, "top_p": 0.8}, [hf.TopPLogitsWarper(0.8)]),
    ({"temperature": 1.0, "top_p": 1e-6}, [hf.TopPLogitsWarper(1e-6)]),
    ({"temperature": 1.0, "min_p": 0.05}, [hf.MinPLogitsWarper(0.05)]),
    (
        {"temperature": 1.8, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
        [
            hf.TemperatureLogitsWarper(1.8),
            hf.TopKLogitsWarper(40),
            hf.TopPLogitsWarper(0.9),
            hf.MinPLogitsWarper(0.02),
        ],
    ),
]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("options", "theirs"), CASES)
def test_processed_logits_equal_hugging_faces(options, theirs, seed):
    expected = hf.LogitsProcessorList(theirs)(PROMPT, logits(seed)[None])[0]
    assert torch.equal(ours(SamplingParams(**options), logits(seed)), expected)


def test_the_order_matters_and_is_hugging_faces():
    """Temperature before top_p: the other way round keeps another set of tokens."""
    params = SamplingParams(temperature=1.8, top_p=0.9)
    backwards = hf.LogitsProcessorList([hf.TopPLogitsWarper(0.9), hf.TemperatureLogitsWarper(1.8)])
    differs = [not torch.equal(ours(params, logits(s)), backwards(PROMPT, logits(s)[None])[0]) for s in range(5)]
    assert all(differs)


@pytest.mark.parametrize("generated", [0, 2, 3, 4])
def test_min_new_tokens_equals_hugging_faces(generated):
    length = PROMPT.shape[1]
    process = hf.MinNewTokensLengthLogitsProcessor(length, 3, [5, 9])
    ids = torch.zeros(1, length + generated, dtype=torch.long)
    expected = process(ids, logits(0)[None])[0]
    assert torch.equal(ours(SamplingParams(min_new_tokens=3), logits(0), generated, (5, 9)), expected)
