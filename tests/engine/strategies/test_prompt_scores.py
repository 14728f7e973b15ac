"""Log-probabilities of prompts and of texts, around every way to generate: those of transformers, in little memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bloomery import LLM, SamplingParams, UsageError
from talker import build_talker

WAYS = [
    {},
    {"temperature": 0.9, "num_return_sequences": 3, "seed": 1},
    {"temperature": 0.9, "best_of": 4, "num_return_sequences": 2, "seed": 1},
    {"num_beams": 4, "num_return_sequences": 2},
    {"num_beams": 3, "temperature": 1.0, "seed": 2},
    {"guidance_scale": 2.0, "negative_prompt_ids": [5] * 90},
    {"guidance_scale": 2.0, "num_beams": 2},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"repetition_penalty": 1.5, "suppress_tokens": [7], "min_new_tokens": 4},
]
BIG = {"model_type": "bloom", "vocab_size": 250_880, "hidden_size": 16, "n_head": 2, "n_layer": 1, "seq_length": 2304}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_talker(tmp_path_factory.mktemp("scores") / "talker")


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder, max_batch_size=16)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def prompts(llm):
    generator = torch.Generator().manual_seed(6)
    return [torch.randint(4, 777, (n,), generator=generator).tolist() for n in (5, 1, 2, 300, 64, 65)]


@torch.inference_mode()
def reference(model, ids):
    """Log-probabilities (T - 1, V) of what follows each token but the last."""
    return model(torch.tensor([ids])).logits[0].log_softmax(-1)[:-1]


def expect(tokens, ids, logprobs, count):
    assert [token.id for token in tokens] == list(ids)
    for token, row in zip(tokens, logprobs, strict=True):
        best = row.topk(count)
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        assert [one for one, _ in token.top] == best.indices.tolist()
        assert [value for _, value in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("options", WAYS, ids=lambda options: "-".join(options) or "greedy")
def test_logprobs_of_prompt_and_text_are_the_models_own_in_every_way_to_generate(llm, model, options):
    """All prompts at once; as transformers has them for the whole text, before any option."""
    params = SamplingParams(max_new_tokens=9, logprobs=3, prompt_logprobs=2, **options)
    done = llm.generate(prompts(llm), params)
    assert len(done) == len(prompts(llm)) * params.num_return_sequences
    for one in done:
        logprobs = reference(model, [*one.prompt_ids, *one.token_ids])
        length = len(one.prompt_ids)
        expect(one.prompt_logprobs, one.prompt_ids[1:], logprobs[: length - 1], 2)
        expect(one.logprobs, one.token_ids, logprobs[length - 1 :], 3)
    assert llm.engine.idle


@pytest.mark.parametrize("options", WAYS, ids=lambda options: "-".join(options) or "greedy")
def test_to_report_them_changes_no_token_and_no_score(llm, options):
    plain = llm.generate(prompts(llm), SamplingParams(max_new_tokens=9, **options))
    told = llm.generate(prompts(llm), SamplingParams(max_new_tokens=9, logprobs=0, prompt_logprobs=0, **options))
    assert [one.token_ids for one in told] == [one.token_ids for one in plain]
    assert [one.score or 0 for one in told] == pytest.approx([one.score or 0 for one in plain], rel=1e-6)
    assert {(one.logprobs, one.prompt_logprobs) for one in plain} == {(None, None)}
    assert all(token.top == () for one in told for token in (*one.logprobs, *one.prompt_logprobs))


@pytest.mark.parametrize("options", [WAYS[1], WAYS[5], WAYS[7]], ids="-".join)
def test_a_prompt_that_runs_in_pieces_or_waits_has_the_same_logprobs(llm, folder, options):
    params = SamplingParams(max_new_tokens=9, prompt_logprobs=1, **options)
    small = LLM(folder, max_batch_size=4)
    small.engine.scheduler.max_step_tokens = 7
    for ours, theirs in zip(small.generate(prompts(llm), params), llm.generate(prompts(llm), params), strict=True):
        assert ours.token_ids == theirs.token_ids
        assert [token.id for token in ours.prompt_logprobs] == [token.id for token in theirs.prompt_logprobs]
        assert [token.logprob for token in ours.prompt_logprobs] == pytest.approx(
            [token.logprob for token in theirs.prompt_logprobs], abs=1e-5
        )


def test_they_are_what_score_gives(llm):
    prompt = prompts(llm)[3]
    done = llm.generate(prompt, SamplingParams(max_new_tokens=1, prompt_logprobs=0))[0]
    assert [token.logprob for token in done.prompt_logprobs] == pytest.approx(llm.score([prompt])[0].logprobs, abs=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.slow
def test_a_long_prompt_on_a_large_head_takes_little_memory(tmp_path):
    """2,048 tokens on 250,880 rows: all logits at once would be 2 GB."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(BIG))
    command = [sys.executable, str(Path(__file__).parent / "prompt_peak.py"), str(config)]
    taken = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert taken["count"] == 2047
    assert taken["scored"] - taken["plain"] < 300e6
    assert taken["scored"] > 60e6, "64 rows of the head are 64 MB: the measurement means nothing"


def test_more_than_all_tokens_are_refused(llm):
    for name in ("logprobs", "prompt_logprobs"):
        assert llm.generate("the", SamplingParams(max_new_tokens=1, **{name: 777}))
        with pytest.raises(UsageError, match=f"{name} is 778, but the model has 777 tokens"):
            llm.generate("the", SamplingParams(**{name: 778}))


@pytest.mark.parametrize("value", [-1, True, 1.5, "2"])
def test_what_is_no_number_of_tokens_is_refused(value):
    with pytest.raises(UsageError, match="prompt_logprobs is"):
        SamplingParams(prompt_logprobs=value)
