"""Contrastive search against transformers 4.55.4, whose answers tests/oracles/contrastive.py has written down."""

import json
from pathlib import Path

import pytest
import torch

from bloomery import LLM, SamplingParams, UsageError
from bloomery.engine.request import Request
from bloomery.engine.strategies.contrastive import ContrastiveSearch
from oracles.contrastive import CASES, LENGTHS, MODELS, biases, random_prompt, sha256

ORACLE = json.loads((Path(__file__).parents[2] / "oracles" / "contrastive.json").read_text())
EXPECTED = {one["shape"]: one for one in ORACLE["models"]}


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory):
    """By name, with the ends of sequence that the oracle had, and seats for two requests of 64 candidates."""
    loaded = {}
    for name in MODELS:
        folder = tmp_path_factory.mktemp("contrastive") / name
        tiny(name).model.save_pretrained(folder)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ORACLE["eos_token_id"]}))
        loaded[name] = LLM(folder, max_batch_size=128)
    return loaded


@pytest.fixture(scope="module")
def llm(models):
    return models["bloom-6-heads"]


def ours(case, **more):
    options = case | ({"sequence_bias": biases(case["sequence_bias"])} if "sequence_bias" in case else {})
    return SamplingParams(max_new_tokens=ORACLE["max_new_tokens"], **(options | more))


def test_the_oracle_has_answered_what_is_asked_here_with_these_weights(tiny):
    assert ORACLE["transformers"] == "4.55.4"
    for name in MODELS:
        known = EXPECTED[name]
        assert sha256(tiny(name).model) == known["sha256"], "rebuild the oracle, or the model differs by version"
        assert known["prompts"] == [random_prompt(tiny(name).model.config.vocab_size, n) for n in LENGTHS]
        assert [text["options"] for text in known["texts"]] == CASES


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda n: "-".join(map(str, CASES[n].values())))
@pytest.mark.parametrize("name", MODELS)
def test_tokens_equal_transformers_in_any_batch(models, name, case):
    """All prompts at once, unequal as they are, against transformers with one at a time."""
    known = EXPECTED[name]
    done = models[name].generate(known["prompts"], ours(CASES[case]))
    assert [list(one.token_ids) for one in done] == known["texts"][case]["tokens"]
    assert models[name].engine.idle
    if "sequence_bias" in CASES[case]:
        assert {one.finish_reason for one in done} == {"stop"}


def test_tokens_are_the_same_alone_in_small_steps_and_after_giving_way(llm):
    known = EXPECTED["bloom-6-heads"]
    small = LLM(llm.folder.path, max_batch_size=8)
    small.engine.scheduler.max_step_tokens = 5
    narrow = LLM(llm.folder.path, max_batch_size=8, cache_positions=8 * 64)
    for model in (small, narrow):
        done = model.generate(known["prompts"], ours(CASES[0]))
        assert [list(one.token_ids) for one in done] == known["texts"][0]["tokens"]
    assert narrow.engine.scheduler.preempted


def test_hidden_states_are_kept_once_for_all_candidates(llm):
    """As many rows as the text has tokens, however many candidates there are."""
    strategy = ContrastiveSearch([5] * 70, ours({"penalty_alpha": 0.6, "top_k": 8}))
    llm._turns.run([Request(strategy)])
    kept = [value for value in vars(strategy).values() if isinstance(value, torch.Tensor) and value.dim() == 2]
    assert [tuple(value.shape) for value in kept] == [(70 + ORACLE["max_new_tokens"], llm.decoder.config.hidden_size)]


@pytest.mark.parametrize("length", [63, 64, 100])
def test_candidates_share_all_blocks_but_the_half_full_last_one(llm, monkeypatch, length):
    copied: list[tuple[int, int]] = []
    copy = llm.engine.runner.cache.copy
    monkeypatch.setattr(llm.engine.runner.cache, "copy", lambda pairs: (copied.extend(pairs), copy(pairs)))
    llm.generate([5] * length, ours({"penalty_alpha": 0.6, "top_k": 4}, ignore_eos=True))
    steps = ORACLE["max_new_tokens"]
    at_borders = sum((length + step) % 64 == 0 for step in range(steps))  # nothing is half full there
    assert len(copied) == 3 * (steps - at_borders)
    assert not {old for old, _ in copied} & set(range(length // 64))


def test_a_forbidden_token_is_no_candidate_where_fewer_than_top_k_are_left(llm):
    """Transformers would take it with probability 0 where it is unlike all before."""
    allowed = {7, 9}
    params = ours({"penalty_alpha": 0.9, "top_k": 5}, suppress_tokens=[n for n in range(777) if n not in allowed])
    done = llm.generate([5, 6], params)[0]
    assert set(done.token_ids) == allowed


def test_logprobs_and_streaming_are_those_of_the_chosen_tokens(llm, tiny):
    prompt = EXPECTED["bloom-6-heads"]["prompts"][1]
    pieces = list(llm.stream(prompt, ours(CASES[0], logprobs=2)))
    done = pieces[-1].completion
    assert [piece.token_ids for piece in pieces] == [(token,) for token in done.token_ids]
    logprobs = tiny("bloom-6-heads").logits([*prompt, *done.token_ids]).log_softmax(-1)[len(prompt) - 1 : -1]
    for place, token in enumerate(done.logprobs):
        assert token.logprob == pytest.approx(float(logprobs[place][token.id]), abs=1e-4)
        assert [chosen for chosen, _ in token.top] == logprobs[place].topk(2).indices.tolist()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "penalty_alpha chooses among the top_k likeliest tokens: give top_k, such as 4"),
        ({"top_k": 1}, "penalty_alpha chooses among the top_k likeliest tokens: give top_k, such as 4"),
        ({"top_k": 4, "temperature": 0.8}, r"penalty_alpha and temperature 0\.8 do not go together"),
        ({"top_k": 4, "num_beams": 2}, "penalty_alpha and num_beams 2 do not go together"),
        ({"top_k": 4, "num_return_sequences": 2}, "penalty_alpha and num_return_sequences 2 do not go together"),
        ({"top_k": 4, "length_penalty": 2}, "penalty_alpha and length_penalty 2 do not go together"),
        ({"top_k": 4, "best_of": 2}, "penalty_alpha and best_of 2 do not go together"),
        ({"top_k": 4, "guidance_scale": 2}, "penalty_alpha and guidance_scale 2 do not go together"),
        ({"top_k": 4, "top_p": 0.5}, "top_p would have no effect at temperature 0"),
        ({"top_k": 4, "penalty_alpha": 0}, r"penalty_alpha is 0: give a number in \(0, 1\], such as 0\.6"),
        ({"top_k": 4, "penalty_alpha": 1.5}, r"penalty_alpha is 1\.5: give a number in \(0, 1\]"),
    ],
)
def test_what_makes_no_sense_together_is_refused(options, said):
    with pytest.raises(UsageError, match=said):
        SamplingParams(**({"penalty_alpha": 0.6} | options))


def test_more_candidates_than_tokens_or_seats_are_refused(llm):
    with pytest.raises(UsageError, match="top_k is 778, but the model has 777 tokens"):
        llm.generate("", ours({"penalty_alpha": 0.6, "top_k": 778}))
    with pytest.raises(UsageError, match="a request of 200 sequences at once does not fit a batch of 128"):
        llm.generate([5], ours({"penalty_alpha": 0.6, "top_k": 200}))
