"""The order of a request's processors is Hugging Face's; what cannot be met is refused before anything runs."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, assume, given, reject, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from bloomery import SamplingParams, UsageError
from bloomery.engine.processors import chain
from bloomery.engine.processors.chain import ORDER, build_processors, check_vocabulary, likely_culprits

VOCABULARY = 20
EOS = [3, 8]
NEW = 6
# Not shrunk: an example is readable as it is, and shrinking takes minutes.
FEW = settings(max_examples=800, derandomize=True, deadline=None, database=None, phases=[Phase.generate])


@cache
def tiny_model():
    return GPT2LMHeadModel(GPT2Config(n_embd=4, n_head=1, n_layer=1, vocab_size=VOCABULARY, n_positions=32))


def theirs(options: dict[str, Any], prompt: list[int], history: torch.Tensor, logits: torch.Tensor, beams: int = 1):
    """By the chain that transformers builds for a model."""
    sampled = options.get("temperature", 0) > 0
    given = {name: value for name, value in options.items() if name != "temperature" or sampled}
    generation = GenerationConfig(
        do_sample=sampled, max_length=len(prompt) + NEW, eos_token_id=EOS, num_beams=beams, **given
    )
    generation._eos_token_tensor = torch.tensor(EOS)
    processors = tiny_model()._get_logits_processor(
        generation, input_ids_seq_length=len(prompt), encoder_input_ids=torch.tensor([prompt]), device="cpu"
    )
    return processors(history, logits.clone())


def ours(options: dict[str, Any], prompt: list[int], history: torch.Tensor, logits: torch.Tensor, keep: int = 1):
    params = SamplingParams(max_new_tokens=NEW, **options)
    for process in build_processors(params, prompt, tuple(EOS), keep=keep):
        logits = process(history, logits)
    return logits


tokens = st.sampled_from([*EOS, *range(VOCABULARY)])  # ends are frequent, since many options are about them
several = st.lists(tokens, min_size=1, max_size=2, unique=True)
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "sequence_bias": st.dictionaries(
        st.lists(tokens, min_size=1, max_size=2).map(tuple), st.sampled_from([-3.0, 4.0]), min_size=1, max_size=4
    ),
    "encoder_repetition_penalty": st.floats(0.5, 3),
    "repetition_penalty": st.floats(0.5, 3),
    "no_repeat_ngram_size": st.integers(1, 3),
    "encoder_no_repeat_ngram_size": st.integers(1, 3),
    "bad_words_ids": st.lists(
        st.lists(tokens, min_size=1, max_size=2).filter(lambda ids: ids not in ([3], [8])), min_size=1, max_size=3
    ),
    "min_length": st.integers(1, 5),
    "min_new_tokens": st.integers(1, 5),
    "forced_eos_token_id": several,
    "remove_invalid_values": st.just(True),
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 3), st.floats(1.1, 1.5)),
    "suppress_tokens": several,
    "begin_suppress_tokens": several,
    "renormalize_logits": st.just(True),
}
SAMPLED: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0.3, 3),
    "top_h": st.floats(0.3, 0.95),
    "top_k": st.integers(2, 10),
    "top_p": st.floats(0.2, 0.99),
    "min_p": st.floats(0.02, 0.4),
    "typical_p": st.floats(0.2, 0.99),
    "epsilon_cutoff": st.floats(0.02, 0.2),
    "eta_cutoff": st.floats(0.02, 0.2),
}


@st.composite
def situations(draw: st.DrawFn):
    """Two to five options: with more, what one does is hidden by the others."""
    names = st.sampled_from([*OPTIONS, *SAMPLED, "forced_bos_token_id"])
    chosen = draw(st.lists(names, min_size=2, max_size=5, unique=True))
    options = {name: draw(({"forced_bos_token_id": tokens} | OPTIONS | SAMPLED)[name]) for name in chosen}
    if set(options) & set(SAMPLED):
        options.setdefault("temperature", 1.0)
    forced = {*options.get("forced_eos_token_id", []), options.get("forced_bos_token_id")}
    if forced & set(options.get("suppress_tokens", [])):  # would be refused
        del options["suppress_tokens"]
    if "exponential_decay_length_penalty" in options:  # together they have a test of their own
        options.pop("remove_invalid_values", None)
    prompt = draw(st.lists(tokens, min_size=1, max_size=1 if "forced_bos_token_id" in options else 5))
    new = draw(st.sampled_from([0, 1, NEW // 2, NEW - 1]))
    history = torch.tensor([prompt + draw(st.lists(tokens, min_size=new, max_size=new))])
    torch.manual_seed(draw(st.integers(0, 2**32)))
    return options, prompt, history, torch.randn(1, VOCABULARY) * 2


@FEW
@given(situation=situations(), beams=st.sampled_from([1, 2]))
def test_any_combination_equals_hugging_faces_chain(situation, beams):
    keep = 1 if beams == 1 else len(EOS) + 1
    try:
        expected = theirs(*situation, beams=beams)
    except ValueError:  # torch's Categorical, where every token is forbidden
        reject()
    assume(not expected.isnan().any())  # as it is where every token is forbidden
    torch.testing.assert_close(ours(*situation, keep=keep), expected, atol=1e-6, rtol=1e-6)


NEIGHBOURS = [
    ("min_new_tokens", "forced_bos_token_id", {"min_new_tokens": 2, "forced_bos_token_id": EOS[0]}),
    ("forced_eos_token_id", "remove_invalid_values", {"forced_eos_token_id": [4], "remove_invalid_values": True}),
    ("temperature", "top_h", {"temperature": 2.0, "top_h": 0.5}),
    ("top_h", "top_k", {"temperature": 1.0, "top_h": 0.6, "top_k": 7}),
    ("top_k", "top_p", {"temperature": 1.0, "top_k": 5, "top_p": 0.8}),
    ("top_p", "min_p", {"temperature": 1.0, "top_p": 0.8, "min_p": 0.2}),
    ("min_p", "typical_p", {"temperature": 1.0, "min_p": 0.2, "typical_p": 0.7}),
    ("typical_p", "epsilon_cutoff", {"temperature": 1.0, "typical_p": 0.7, "epsilon_cutoff": 0.08}),
    ("epsilon_cutoff", "eta_cutoff", {"temperature": 1.0, "epsilon_cutoff": 0.08, "eta_cutoff": 0.3}),
    ("eta_cutoff", "renormalize_logits", {"temperature": 1.0, "eta_cutoff": 0.3, "renormalize_logits": True}),
]
"""Neighbours whose order matters, and options with which it does; the others give the same either way."""


@pytest.mark.parametrize(("first", "second", "options"), NEIGHBOURS)
def test_neighbours_stand_as_in_hugging_faces_chain_and_the_other_way_round_is_another(
    monkeypatch, first, second, options
):
    situations = []
    for seed in range(40):
        torch.manual_seed(seed)
        new = 0 if first == "min_new_tokens" else NEW - 1
        situations.append((options, [5], torch.randint(VOCABULARY, (1, 1 + new)), torch.randn(1, VOCABULARY) * 2))
    for situation in situations:
        torch.testing.assert_close(ours(*situation), theirs(*situation), atol=1e-6, rtol=1e-6)
    right = [ours(*situation) for situation in situations]
    rows = list(ORDER)
    place = [name for name, _ in rows].index(first)
    assert rows[place + 1][0] == second
    rows[place : place + 2] = rows[place + 1], rows[place]
    monkeypatch.setattr(chain, "ORDER", tuple(rows))
    assert any(not torch.equal(ours(*situation), one) for situation, one in zip(situations, right, strict=True))


def test_a_forbidden_end_stays_forbidden_where_hugging_face_makes_it_certain():
    """remove_invalid_values makes it the least number, and the length penalty adds what that number is large."""
    options = {"min_new_tokens": 6, "remove_invalid_values": True, "exponential_decay_length_penalty": (0, 1.5)}
    situation = (options, [5], torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.randn(1, VOCABULARY))
    assert int(theirs(*situation).argmax()) in EOS
    assert int(ours(*situation).argmax()) not in EOS


def test_what_hugging_face_lacks_stands_beside_what_it_is_akin_to():
    names = [name for name, _ in ORDER]
    assert names.index("logit_bias") == names.index("sequence_bias") + 1
    place = names.index("repetition_penalty")
    assert names[place + 1 : place + 3] == ["frequency_penalty", "presence_penalty"]


def test_the_documentation_gives_the_order():
    text = (Path(__file__).parents[3] / "docs" / "generation.md").read_text().partition("## The order")[2]
    paragraph = text.strip().split("\n\n")[1]
    # Words are ids when they reach the chain.
    assert re.findall(r"`(\w+)`", paragraph) == [name.replace("bad_words_ids", "bad_words") for name, _ in ORDER]


def test_biases_and_penalties_of_openai_are_applied_in_the_chain():
    history, logits = torch.tensor([[1, 2, 2, 4]]), torch.zeros(1, VOCABULARY)
    options = {"frequency_penalty": 0.5, "presence_penalty": 0.25, "logit_bias": {4: 2.0, 5: -1}}
    expected = torch.zeros(1, VOCABULARY)
    expected[0, [2, 4, 5]] = torch.tensor([-1.25, 2 - 0.75, -1])
    assert torch.equal(ours(options, [1], history, logits), expected)


def test_nothing_asked_for_is_no_processor():
    neutral = {"repetition_penalty": 1, "encoder_repetition_penalty": 1.0, "frequency_penalty": 0, "min_new_tokens": 0}
    assert build_processors(SamplingParams(), [1, 2], (3,)) == []
    assert build_processors(SamplingParams(**neutral, presence_penalty=0.0), [1, 2], (3,)) == []
    assert build_processors(SamplingParams(temperature=1, top_p=1, typical_p=1), [1, 2], (3,)) == []
    assert build_processors(SamplingParams(min_new_tokens=2, min_length=4), [1, 2], ()) == []  # no text ends


@pytest.mark.parametrize(
    ("options", "prompt", "eos", "said"),
    [
        ({"max_length": 4}, [1] * 4, (3,), "max_length 4 leaves no room behind the prompt's 4 tokens"),
        ({"min_length": 20, "max_new_tokens": 5}, [1] * 4, (3,), "min_length 20 cannot be reached within max_new_tok"),
        ({"min_new_tokens": 5, "max_length": 8}, [1] * 4, (3,), "min_new_tokens 5 cannot be reached within max_length"),
        ({"forced_bos_token_id": 4}, [1] * 4, (3,), "forced_bos_token_id comes behind a prompt of one token"),
        ({"exponential_decay_length_penalty": (2, 1.5)}, [1], (), "needs an end-of-sequence token"),
        ({"bad_words_ids": [[4], [3]]}, [1], (3,), "bad_words_ids has 3, which ends a text"),
    ],
)
def test_what_cannot_be_met_behind_a_prompt_is_refused(options, prompt, eos, said):
    with pytest.raises(UsageError, match=said) as caught:
        build_processors(SamplingParams(**options), prompt, eos)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {13: 1.0}},
        {"sequence_bias": {(1, 13): 1.0}},
        {"bad_words_ids": [[13, 1]]},
        {"forced_bos_token_id": 13},
        {"forced_eos_token_id": 13},
        {"suppress_tokens": [1, 13]},
        {"begin_suppress_tokens": [13]},
    ],
)
def test_a_token_outside_the_vocabulary_is_refused(options):
    name = next(iter(options))
    with pytest.raises(UsageError, match=f"{name} names token 13, which is outside the model's vocabulary of 13"):
        check_vocabulary(SamplingParams(**options), 13)
    check_vocabulary(SamplingParams(**options), 14)


def test_more_than_all_tokens_are_refused():
    check_vocabulary(SamplingParams(temperature=1, top_k=13), 13)
    with pytest.raises(UsageError, match="top_k is 14, but the model has 13 tokens"):
        check_vocabulary(SamplingParams(temperature=1, top_k=14), 13)


def test_the_options_that_may_have_forbidden_all_are_named():
    params = SamplingParams(no_repeat_ngram_size=1, suppress_tokens=[1], temperature=1)
    assert likely_culprits(params) == "no_repeat_ngram_size or suppress_tokens or a higher temperature"
