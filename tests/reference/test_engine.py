"""Both engines give the same answers to the same requests; what transformers cannot be asked for is refused."""

import json
import sys
from dataclasses import fields
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bloomery import LLM, SamplingParams
from bloomery.checkpoint.convert import convert
from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.origin import origin_of
from bloomery.errors import BloomeryError, MissingExtra, UsageError
from bloomery.ops.random import uniform
from bloomery.reference.engine import ReferenceLLM
from bloomery.reference.options import BESIDE, TABLE
from talker import EOS, build_talker
from tiny import Tiny

FAMILIES = (
    "bloom-7-heads",
    "gpt2-gelu",
    "llama-grouped-scaled",
    "mistral-window",
    "mixtral-2-of-4",
    "falcon-7b-like",
    "phi-partial",
    "starcoder-multi-query",
)
PROMPTS = ([5, 6, 7, 8, 9, 5, 6], [11, 12, 13] * 22)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_talker(tmp_path_factory.mktemp("reference") / "talker")


@pytest.fixture(scope="module")
def ours(folder):
    return LLM(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return ReferenceLLM(folder)


def expect_same(one, other):
    """The same texts for the same reasons, and the same figures up to rounding."""
    assert [(a.token_ids, a.text, a.finish_reason, a.choice, a.prompt_ids) for a in one] == [
        (b.token_ids, b.text, b.finish_reason, b.choice, b.prompt_ids) for b in other
    ]
    for a, b in zip(one, other, strict=True):
        assert (a.score is None) == (b.score is None)
        assert a.score is None or a.score == pytest.approx(b.score, rel=1e-6, abs=1e-5)
        assert (a.logprobs is None) == (b.logprobs is None)
        for token, same in zip(a.logprobs or (), b.logprobs or (), strict=True):
            assert token.logprob == pytest.approx(same.logprob, abs=1e-4)
            assert [place for place, _ in token.top] == [place for place, _ in same.top]
            assert [value for _, value in token.top] == pytest.approx([value for _, value in same.top], abs=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_both_engines_give_the_same_tokens_in_every_family(tiny, name: str, beams: int) -> None:
    checkpoint: Tiny = tiny(name)
    prompts = [checkpoint.prompt(length) for length in (1, 12, 65)]
    params = SamplingParams(max_new_tokens=24, num_beams=beams, num_return_sequences=beams, logprobs=2)
    expect_same(LLM(checkpoint.path).generate(prompts, params), ReferenceLLM(checkpoint.path).generate(prompts, params))


SHORT = {"max_new_tokens": 20}
LIKELY_ENDS = {(EOS,): 6.0, (3,): 5.0}
ENDING = SHORT | {"sequence_bias": LIKELY_ENDS}
DRAWN = SHORT | {"temperature": 1.0, "seed": 3}
BEAMS = ENDING | {"num_beams": 4}
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "max_new_tokens": ({}, 7),
    "min_new_tokens": (ENDING, 12),
    "max_length": ({}, 80),
    "min_length": (ENDING, 20),
    "max_time": (SHORT, 1e-9),
    "temperature": (SHORT | {"seed": 3}, 0.7),
    "top_h": (DRAWN, 0.3),
    "top_k": (DRAWN, 3),
    "top_p": (DRAWN, 0.5),
    "min_p": (DRAWN, 0.3),
    "typical_p": (DRAWN, 0.2),
    "epsilon_cutoff": (DRAWN, 0.05),
    "eta_cutoff": (DRAWN, 0.5),
    "repetition_penalty": (SHORT, 1.8),
    "encoder_repetition_penalty": (SHORT, 3.0),
    "no_repeat_ngram_size": (SHORT, 1),
    "encoder_no_repeat_ngram_size": (SHORT, 1),
    "sequence_bias": (SHORT, {(50,): 4.0, (50, 60): 9.0}),
    "logit_bias": (SHORT | {"sequence_bias": {(50,): 2.0, (50, 60): 9.0}}, {50: 3.0, 61: 2.0}),
    "bad_words_ids": (SHORT, [[5], [6, 7]]),
    "suppress_tokens": (SHORT, [5, 6, 7]),
    "begin_suppress_tokens": (SHORT, [5, 6, 7]),
    "forced_bos_token_id": (SHORT, 9),
    "forced_eos_token_id": (SHORT, [3, EOS]),
    "exponential_decay_length_penalty": (SHORT, (3, 3.0)),
    "renormalize_logits": (SHORT | {"num_beams": 2, "repetition_penalty": 1.5}, True),
    "num_return_sequences": (BEAMS, 3),
    "num_beams": (SHORT, 3),
    "length_penalty": (BEAMS, -2.0),
    "early_stopping": (BEAMS | {"num_return_sequences": 4, "length_penalty": 2.0}, "never"),
}


def prompts_for(name: str, ours: LLM) -> list[list[int]]:
    """Two of unequal length, or what an option is for: one token, or a prompt that the text would repeat."""
    if name == "encoder_no_repeat_ngram_size":
        return [[*PROMPTS[0], *ours.generate(list(PROMPTS[0]))[0].token_ids]]
    return [[4]] if name == "forced_bos_token_id" else [list(ids) for ids in PROMPTS]


def found(engine, prompts, options):
    return engine.generate(prompts, SamplingParams(**options))


def same_numbers_drawn(monkeypatch, prompts: int, seed: int, new: int) -> None:
    """Let transformers draw what our engine draws: inverse CDF of the uniform of a seed, a place and a text."""
    places = iter([place for _ in range(prompts) for place in range(new)])

    def multinomial(odds, num_samples):
        assert num_samples == 1
        place, cdf = next(places), odds.double().cumsum(-1)
        draws = torch.tensor([[uniform(seed, place, row)] for row in range(len(odds))], dtype=torch.float64)
        return torch.searchsorted(cdf, draws * cdf[:, -1:], right=True)

    monkeypatch.setattr(torch, "multinomial", multinomial)


@pytest.mark.parametrize("name", CASES)
def test_an_option_does_the_same_in_both_engines_and_does_something(ours, theirs, monkeypatch, name):
    common, value = CASES[name]
    prompts = prompts_for(name, ours)
    plain = found(ours, prompts, common)
    if name in ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"):  # what would else be said
        said = [one.token_ids for one in plain]
        value = [[ids[0]] for ids in said] + [list(said[0][3:5])] if name == "bad_words_ids" else [i[0] for i in said]
    options = common | {name: value}
    if "seed" in options:
        same_numbers_drawn(monkeypatch, len(prompts), options["seed"], 20)
    expected = found(ours, prompts, options)
    expect_same(found(theirs, prompts, options), expected)
    assert [(one.token_ids, one.score) for one in expected] != [(one.token_ids, one.score) for one in plain]


def test_every_option_of_the_table_has_a_case():
    assert {name for name, _, _ in TABLE} == set(CASES) | {"remove_invalid_values"}
    assert {field.name for field in fields(SamplingParams)} >= {name for name, _, _ in TABLE} | set(BESIDE)


UNKNOWN = [f.name for f in fields(SamplingParams) if f.name not in {name for name, _, _ in TABLE} | set(BESIDE)]


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_option_that_transformers_lacks_is_refused_by_its_name(theirs, name):
    params = SamplingParams()
    object.__setattr__(params, name, "asked for")  # whatever it is
    with pytest.raises(UsageError, match=f"^--engine transformers does not take {name}: drop it, or "):
        theirs.generate("the cat", params)


def test_what_openai_alone_has_is_among_the_refused():
    assert {"frequency_penalty", "presence_penalty", "best_of"} <= set(UNKNOWN)


@pytest.mark.parametrize("name", ["min_new_tokens", "min_length"])
def test_ends_that_are_ignored_cannot_be_put_off(theirs, name):
    with pytest.raises(UsageError, match=f"with ignore_eos .* {name} would do nothing there"):
        theirs.generate("the cat", SamplingParams(ignore_eos=True, **{name: 3}))


@pytest.fixture(scope="module")
def broken(folder, tmp_path_factory):
    """A model with a token whose logit is no number."""
    path = tmp_path_factory.mktemp("broken") / "talker"
    build_talker(path)
    tensors = load_file(path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name][77] = torch.nan
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_logits_that_are_no_numbers_end_a_request_in_both_engines_unless_they_are_removed(broken):
    both = [LLM(broken), ReferenceLLM(broken)]
    for engine in both:
        for beams in (1, 2):
            with pytest.raises(BloomeryError, match="at generated token 0: try"):
                engine.generate([5, 6], SamplingParams(num_beams=beams))
    expect_same(*(found(engine, [[5, 6]], SHORT | {"remove_invalid_values": True}) for engine in both))


def test_a_text_with_no_token_left_is_an_error_and_not_token_0(theirs):
    with pytest.raises(BloomeryError, match="no token to choose at generated token 0"):
        theirs.generate([5], SamplingParams(suppress_tokens=list(range(777))))


@pytest.mark.parametrize("beams", [{}, {"num_beams": 3, "num_return_sequences": 3}])
def test_a_text_ends_before_a_stop_string_in_both_engines(ours, theirs, beams):
    free = ours.generate("the cat", SamplingParams(**SHORT, **beams))[0]
    words = [ours.tokenizer.decode([token]) for token in free.token_ids]
    stop = next(word for word in words[3:] if word.strip().isalnum())
    ended = found(ours, "the cat", SHORT | beams | {"stop_strings": [stop]})
    expect_same(found(theirs, "the cat", SHORT | beams | {"stop_strings": [stop]}), ended)
    assert "stop" in {one.finish_reason for one in ended}
    assert not any(stop in one.text for one in ended)


def test_ends_are_the_checkpoints_own_and_are_passed_over_on_request(ours, theirs):
    options = SHORT | {"sequence_bias": LIKELY_ENDS}
    ending, going = (found(ours, "the cat", options | {"ignore_eos": ignore}) for ignore in (False, True))
    expect_same(found(theirs, "the cat", options), ending)
    expect_same(found(theirs, "the cat", options | {"ignore_eos": True}), going)
    assert ending[0].finish_reason == "stop"
    assert len(ending[0].token_ids) < len(going[0].token_ids) == 20


def test_a_bad_word_is_the_same_tokens_in_both_engines(ours, theirs):
    free = ours.generate("the cat", SamplingParams(**SHORT))[0]
    words = [ours.tokenizer.decode([token]).strip() for token in free.token_ids]
    word = next(word for word in words if word.isalnum() and word.isascii())
    without = found(ours, "the cat", SHORT | {"bad_words": [word]})
    expect_same(found(theirs, "the cat", SHORT | {"bad_words": [word]}), without)
    assert without[0].token_ids != free.token_ids


def test_log_probabilities_are_those_of_the_model_before_any_option(ours, theirs):
    options = SHORT | {"logprobs": 3, "repetition_penalty": 1.5, "sequence_bias": {(50,): 3.0}}
    expect_same(found(theirs, "the cat", options), found(ours, "the cat", options))
    beams = BEAMS | {"logprobs": 3, "num_return_sequences": 4}
    expect_same(found(theirs, "the cat", beams), found(ours, "the cat", beams))


def test_a_seed_gives_the_same_texts_again_and_leaves_torchs_generator_alone(theirs):
    options = SHORT | {"temperature": 1.0, "num_return_sequences": 3}
    first = found(theirs, ["the cat", "a"], options)
    state = torch.get_rng_state()
    again = [found(theirs, text, options | {"seed": first[3 * n].seed}) for n, text in enumerate(["the cat", "a"])]
    assert [one.token_ids for texts in again for one in texts] == [one.token_ids for one in first]
    assert torch.equal(state, torch.get_rng_state())
    assert len({one.token_ids for one in first[:3]}) > 1
    other = found(theirs, "the cat", options | {"seed": 2**64 - 1})
    assert other[0].token_ids != first[0].token_ids


def test_a_checkpoints_own_sampling_defaults_are_off_as_in_our_engine(folder, theirs, tmp_path):
    """Its generation_config.json has a temperature; one with penalties as well changes nothing either."""
    path = build_talker(tmp_path / "talker")
    defaults = {
        "do_sample": True,
        "temperature": 0.7,
        "repetition_penalty": 3.0,
        "num_beams": 3,
        "suppress_tokens": [5],
    }
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, 3], **defaults}))
    expect_same(found(ReferenceLLM(path), "the cat", SHORT), found(theirs, "the cat", SHORT))


def test_prompts_come_back_in_order_and_alone_is_the_same_as_among_others(theirs):
    together = found(theirs, [*PROMPTS, "the cat"], SHORT | {"encoder_repetition_penalty": 2.0})
    for prompt, one in zip([*PROMPTS, "the cat"], together, strict=True):
        expect_same(found(theirs, prompt, SHORT | {"encoder_repetition_penalty": 2.0}), [one])


def test_a_prompt_that_is_too_long_is_refused_or_cut_as_by_our_engine(folder):
    both = [LLM(folder, max_seq_len=40), ReferenceLLM(folder, max_seq_len=40)]
    said = []
    for engine in both:
        with pytest.raises(UsageError) as refused:
            engine.generate([7] * 30, SamplingParams(**SHORT))
        said.append(str(refused.value))
    assert said[0] == said[1]
    for side in ("left", "right"):
        expect_same(*(e.generate([7] * 15 + [8] * 15, SamplingParams(**SHORT), truncate=side) for e in both))


def test_a_context_beyond_the_models_is_refused(folder):
    with pytest.raises(UsageError, match="max_seq_len is 513: give 2 to 512"):
        ReferenceLLM(folder, max_seq_len=513)


def test_time_is_told_as_by_our_engine(theirs):
    first, second = (one.timings for one in found(theirs, ["the cat", "a"], SHORT))
    assert 0 <= first.queue < first.ttft < first.total <= second.queue < second.ttft < second.total
    assert theirs.decoding.steps > 0


def test_a_store_is_refused_with_what_to_do(folder, tmp_path):
    convert(origin_of(read_folder(folder), str(folder)), tmp_path / "store")
    with pytest.raises(UsageError, match=r"is a store, which transformers cannot read: .*'bloomery export'"):
        ReferenceLLM(tmp_path / "store")


def test_without_transformers_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"'transformers': pip install 'bloomery\[reference\]'"):
        ReferenceLLM(folder)


def test_a_model_without_a_tokenizer_takes_ids_only(bloom: Tiny):
    engine = ReferenceLLM(bloom.path)
    for name in ("stop_strings", "bad_words"):
        with pytest.raises(UsageError, match=f"no tokenizer.json: {name} need one"):
            engine.generate([5], SamplingParams(**{name: ["x"]}))
