"""Beam search and beam sampling against transformers: the same texts, and the same scores."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from bloomery import LLM, SamplingParams
from bloomery.ops.random import uniform
from talker import EOS, build_talker

LENGTHS = (5, 70, 3, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_talker(tmp_path_factory.mktemp("beams") / "talker")


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder, max_batch_size=16)


@pytest.fixture(scope="module")
def model(folder):
    # In float64: that its fp32 rounds as ours does would be chance.
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def prompts(llm):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(4, llm.decoder.config.vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]


def theirs(model, prompt: list[int], options: dict[str, Any]) -> list[tuple[tuple[int, ...], float]]:
    """Texts and scores of one prompt."""
    given = {"max_new_tokens": 20, "eos_token_id": EOS, "pad_token_id": 0} | options
    config = GenerationConfig(**given, return_dict_in_generate=True, output_scores=True)
    out = model.generate(torch.tensor([prompt]), generation_config=config)
    texts = []
    for row, score in zip(out.sequences[:, len(prompt) :].tolist(), out.sequences_scores.tolist(), strict=True):
        ends = [place for place, token in enumerate(row) if token in _ends(given["eos_token_id"])]
        texts.append((tuple(row[: ends[0] + 1] if ends else row), score))
    return texts


def _ends(eos):
    return eos if isinstance(eos, list) else [eos]


ENDS = [EOS, 3]
LIKELY_ENDS = {(EOS,): 6.0, (3,): 5.0}  # of texts of a few tokens
CASES: list[dict[str, Any]] = [
    {"num_beams": 4},
    {"num_beams": 2, "length_penalty": 0.0, "sequence_bias": LIKELY_ENDS},
    *(
        {
            "num_beams": 4,
            "num_return_sequences": 3,
            "length_penalty": penalty,
            "early_stopping": early,
            "sequence_bias": LIKELY_ENDS,
        }
        for penalty in (1.0, -0.5, 2.0)
        for early in (False, True, "never")
    ),
    {"num_beams": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "min_new_tokens": 6},
    {"num_beams": 5, "num_return_sequences": 5, "sequence_bias": LIKELY_ENDS, "renormalize_logits": True},
]


def expect_same(ours, expected):
    assert [one.token_ids for one in ours] == [ids for ids, _ in expected]
    assert [one.score for one in ours] == pytest.approx([score for _, score in expected], rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(map(str, options.values()))[:60])
def test_beams_equal_transformers_in_any_batch(llm, model, options):
    """All prompts at once, unequal as they are, against transformers with one at a time."""
    given = {"max_new_tokens": 20} | options
    together = llm.generate(prompts(llm), SamplingParams(**given))
    count = options.get("num_return_sequences", 1)
    for index, prompt in enumerate(prompts(llm)):
        ours = together[count * index : count * (index + 1)]
        expect_same(ours, theirs(model, prompt, {"eos_token_id": ENDS, "do_sample": False} | options))
    assert llm.engine.idle
    if "sequence_bias" in options:
        assert {one.finish_reason for one in together} >= {"stop"}


def test_ignored_ends_are_no_ends(llm, model):
    options = {"num_beams": 3, "sequence_bias": LIKELY_ENDS}
    ours = llm.generate(prompts(llm)[0], SamplingParams(max_new_tokens=20, ignore_eos=True, **options))
    config = {"eos_token_id": 776, "do_sample": False} | options  # none would be the checkpoint's
    out = model.generate(
        torch.tensor([prompts(llm)[0]]),
        generation_config=GenerationConfig(
            max_new_tokens=20, return_dict_in_generate=True, output_scores=True, pad_token_id=0, **config
        ),
    )
    expect_same(ours, [(tuple(out.sequences[0, LENGTHS[0] :].tolist()), float(out.sequences_scores[0]))])


SAMPLED = [
    {"num_beams": 3, "temperature": 1.0},
    {"num_beams": 3, "num_return_sequences": 2, "temperature": 0.7, "top_k": 20, "sequence_bias": LIKELY_ENDS},
    {"num_beams": 4, "temperature": 1.3, "top_p": 0.8, "early_stopping": True, "sequence_bias": LIKELY_ENDS},
    {"num_beams": 2, "temperature": 1.0, "typical_p": 0.5, "length_penalty": 0.3},
]


@pytest.mark.parametrize("options", SAMPLED, ids="-".join)
@pytest.mark.parametrize("seed", [1, 2])
def test_beam_sampling_equals_transformers_where_the_same_numbers_are_drawn(llm, model, monkeypatch, options, seed):
    together = llm.generate(prompts(llm), SamplingParams(max_new_tokens=20, seed=seed, **options))
    count = options.get("num_return_sequences", 1)
    for index, prompt in enumerate(prompts(llm)):
        places = iter(range(100))

        def multinomial(odds, num_samples, places=places):
            left, place, chosen = odds.double().clone(), next(places), []
            for n in range(num_samples):
                cdf = left.cumsum(-1)
                drawn = uniform(seed, place, n) * cdf[:, -1:]
                assert (cdf - drawn).abs().min() > 1e-7, "rounding decides this draw: take another seed"
                chosen.append(torch.searchsorted(cdf, drawn, right=True))
                left.scatter_(1, chosen[-1], 0.0)
            return torch.cat(chosen, 1)

        monkeypatch.setattr(torch, "multinomial", multinomial)
        expected = theirs(model, prompt, {"eos_token_id": ENDS, "do_sample": True, "top_k": 0} | options)
        expect_same(together[count * index : count * (index + 1)], expected)


def test_the_seed_of_sampled_beams_gives_them_again(llm):
    first = llm.generate("the cat", SamplingParams(num_beams=3, temperature=1.0))[0]
    again = llm.generate("the cat", SamplingParams(num_beams=3, temperature=1.0, seed=first.seed))[0]
    assert again.token_ids == first.token_ids
    assert again.text == first.text


def test_a_stop_string_ends_a_beam_before_it(llm):
    """Every text that could be found has it, so the search ends where the first num_beams have."""
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 20}
    free = llm.generate("the cat", SamplingParams(**options))
    words = {token: llm.tokenizer.decode([token]) for one in free for token in one.token_ids}
    stop = next(text for text in words.values() if text and all(text in one.text for one in free))
    ended = llm.generate("the cat", SamplingParams(stop_strings=[stop], **options))
    assert {one.finish_reason for one in free} == {"length"}
    assert "stop" in {one.finish_reason for one in ended}
    assert not any(stop in one.text for one in ended)


@pytest.mark.parametrize("length", [63, 64, 100])
def test_beams_copy_a_half_full_last_block_only(llm, monkeypatch, length):
    """Full blocks are shared by all; of the last, a step copies one for each beam beyond the first that has it."""
    copied: list[tuple[int, int]] = []
    copy = llm.engine.runner.cache.copy
    monkeypatch.setattr(llm.engine.runner.cache, "copy", lambda pairs: (copied.extend(pairs), copy(pairs)))
    llm.generate([5] * length, SamplingParams(num_beams=4, max_new_tokens=21, ignore_eos=True))
    assert 0 < len(copied) <= 20 * 3
    shared = length // 64  # blocks that the prompt has filled
    full = set(range(shared))
    assert not {old for old, _ in copied} & full
    assert llm.engine.idle
