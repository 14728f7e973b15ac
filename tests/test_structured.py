"""Texts of a given form, from models that know nothing of it: whatever the seed, strategy and options, they have it."""

import json
import re
import shutil
from typing import Annotated, Literal

import numpy as np
import pytest
import torch
from llguidance import LLMatcher, LLTokenizer
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from transformers import AutoModelForCausalLM, GenerationConfig

from bloomery import LLM, BloomeryError, SamplingParams
from talker import EOS, build_talker, byte_level_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_talker(tmp_path_factory.mktemp("structured") / "talker")


@pytest.fixture(scope="module")
def talker(folder):
    return LLM(folder, max_batch_size=16)


@pytest.fixture(scope="module")
def dickens():
    return LLM("dickens", max_batch_size=16)


@pytest.fixture(params=["dickens", "talker"])
def llm(request):
    """A model that has read books, and a random one whose vocabulary is larger than its tokenizer's."""
    return request.getfixturevalue(request.param)


def hot(**options):
    return SamplingParams(**({"temperature": 1.5, "max_new_tokens": 150, "num_return_sequences": 12} | options))


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Address(Strict):
    street: Annotated[str, Field(max_length=20)]
    number: Annotated[int, Field(ge=1, le=999)]
    kind: Literal["house", "flat", "café"]


class Person(Strict):
    name: Annotated[str, Field(pattern="^[A-Z][a-z]{1,8}( [A-Z][a-z]{1,8})?$")]
    married: bool | None
    height: Annotated[float, Field(gt=0, lt=3)]
    addresses: Annotated[list[Address], Field(min_length=1, max_length=2)]


@pytest.mark.parametrize(
    "form", [Person, Annotated[list[bool | Literal["a"]], Field(min_length=2, max_length=4)], Literal["x", "y é"]]
)
def test_what_has_ended_is_json_of_its_schema(llm, form):
    read = TypeAdapter(form)
    params = hot(json_schema=read.json_schema(), seed=5, max_new_tokens=400, num_return_sequences=5)
    done = llm.generate(["Her name was", "1"], params)
    ended = [one for one in done if one.finish_reason == "stop"]
    assert len(ended) >= 5
    for one in ended:
        read.validate_json(one.text, strict=True)


def test_what_was_cut_says_so(llm):
    read = TypeAdapter(Person)
    for one in llm.generate("Her name was", hot(json_schema=read.json_schema(), seed=5, max_new_tokens=20)):
        assert (one.finish_reason, len(one.token_ids)) == ("length", 20)
        assert re.match(r'\{\s*"name', one.text)
        with pytest.raises(ValidationError):
            read.validate_json(one.text)


def test_any_object_is_json(llm):
    done = [
        one
        for one in llm.generate("An object:", hot(json_object=True, max_new_tokens=60, num_return_sequences=16, seed=1))
        if one.finish_reason == "stop"
    ]
    assert all(isinstance(json.loads(one.text), dict) for one in done)
    assert all(json.loads(one.text) == {} or '"' in one.text for one in done)


REGEXES = [
    r"(Yes|No), (sir|madam)[.!]{1,3}",
    r"[0-9]{4}-(0[1-9]|1[0-2])-[0-9]{2}",
    r"[一-鿿α-ωа-я]{3}",  # most of them are tokens of parts of characters
    "(猫|🐈|собаку|the cat){1,5}",
    r"(?s).{1,5}",
    r"^a{1,3}b{0,4}$",
]


@pytest.mark.parametrize("regex", REGEXES)
def test_what_has_ended_matches_its_regex(llm, regex):
    done = llm.generate(["It was the best of", "猫"], hot(regex=regex, seed=2))
    ended = [one.text for one in done if one.finish_reason == "stop"]
    assert len(ended) >= 12
    assert all(re.fullmatch(regex, text) for text in ended)
    assert all(max(one.token_ids) < llm.tokenizer.backend.get_vocab_size() for one in done)


def test_what_has_ended_follows_its_grammar(llm):
    """Nested brackets, which no regular expression can count."""
    grammar = 'start: pair{1,3}\npair: "(" (pair | DIGIT) ")" | "[" pair? "]"\nDIGIT: /[0-9]/'
    done = llm.generate("f", hot(grammar=grammar, seed=3))
    ended = [one.text for one in done if one.finish_reason == "stop"]
    assert len(ended) >= 6
    for _ in range(150):  # the innermost pairs, again and again
        ended = [re.sub(r"\([0-9.]\)|\[\.?\]", ".", text) for text in ended]
    assert all(re.fullmatch(r"\.{1,3}", text) for text in ended)


FORMS = [
    {},
    {"regex": "[a-c]{5,30}"},
    {"json_schema": {"type": "array", "items": {"type": "integer"}}},
    {"grammar": 'start: ("猫" | "cat")+', "num_return_sequences": 3},
    {"regex": "(the|cat|猫| )+", "num_beams": 3, "temperature": 0.0},
    {"regex": "(the|cat|猫| )+", "num_beams": 3, "num_return_sequences": 2},
    {"json_object": True, "best_of": 3, "stop_strings": [":"]},
]


def together(llm, jobs):
    """The completions of several streams that run at the same time."""
    streams = dict(enumerate(llm.stream(prompt, params) for prompt, params in jobs))
    done = {}
    while streams:
        for number, stream in list(streams.items()):
            piece = next(stream, None)
            if piece is None:
                del streams[number]
            elif piece.completion is not None:
                done[number, piece.choice] = piece.completion
    return done


def test_many_forms_together_are_each_as_alone(talker):
    jobs = [
        (prompt, SamplingParams(**({"temperature": 1.2, "seed": 7, "max_new_tokens": 24} | form)))
        for form in FORMS
        for prompt in ("the cat", "dog, and 猫")
    ]
    found = together(talker, jobs)
    assert talker.engine.idle
    for number, (prompt, params) in enumerate(jobs):
        for alone in talker.generate(prompt, params):
            one = found[number, alone.choice]
            assert (one.token_ids, one.text, one.score) == (alone.token_ids, alone.text, alone.score)


def allowed_by_library(regex, prompt):
    """Transformers' own way to say what may come: the library is asked anew about every text."""
    tokenizer = LLTokenizer(byte_level_tokenizer(400).to_str(), eos_token=EOS)

    def allowed(_, ids):
        matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_regex(regex))
        assert matcher.consume_tokens(ids[prompt:].tolist())
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        return bits.nonzero()[0].tolist()

    return allowed


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"num_beams": 4}], ids=str)
@pytest.mark.parametrize("regex", ["[a-z ]{200}", "(the|cat|猫|dog| )+", "[^a-z]+"])
def test_greedy_and_beams_are_those_of_transformers_under_the_same_mask(folder, tmp_path, options, regex):
    """Of texts that may end but never must: where one must, transformers asks for one more token, the end."""
    ended = {"eos_token_id": EOS}
    shutil.copytree(folder, tmp_path / "one end")
    (tmp_path / "one end" / "generation_config.json").write_text(json.dumps(ended))
    llm = LLM(tmp_path / "one end")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt in ([5, 90, 300], [17] * 40 + [260]):
        ours = llm.generate([prompt], SamplingParams(max_new_tokens=16, regex=regex, **options))
        config = GenerationConfig(
            max_new_tokens=16, pad_token_id=0, return_dict_in_generate=True, output_scores=True, **ended, **options
        )
        out = model.generate(
            torch.tensor([prompt]),
            generation_config=config,
            prefix_allowed_tokens_fn=allowed_by_library(regex, len(prompt)),
        )
        texts = [row[len(prompt) :].tolist() for row in out.sequences]
        texts = [tuple(row[: row.index(EOS) + 1] if EOS in row else row) for row in texts]
        assert [one.token_ids for one in ours] == texts
        if options:
            assert [one.score for one in ours] == pytest.approx(out.sequences_scores.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        {"top_k": 3, "repetition_penalty": 1.3, "frequency_penalty": 1.0},
        {"top_p": 0.01},
        {"min_p": 0.9},
        {"typical_p": 0.05},
        {"epsilon_cutoff": 0.5},
        {"eta_cutoff": 0.5},
        {"top_h": 0.05},
        {"remove_invalid_values": True, "temperature": 100.0},
        {"remove_invalid_values": True, "num_beams": 4, "num_return_sequences": 2, "renormalize_logits": True},
        {"logit_bias": {100: 100, 101: 100}, "sequence_bias": {(102,): 1e30}},
        {"best_of": 4},
        {"exponential_decay_length_penalty": [2, 1.5]},
    ],
    ids="+".join,
)
def test_other_options_choose_among_what_the_form_allows(talker, options):
    params = hot(**({"regex": "[0-9]{3}(-[0-9]){2}", "num_return_sequences": 3, "seed": 1} | options))
    for one in talker.generate("the dog saw", params):
        assert (one.finish_reason, bool(re.fullmatch("[0-9]{3}(-[0-9]){2}", one.text))) == ("stop", True)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 1}], ids=["likeliest", "drawn"])
def test_a_token_that_is_not_allowed_stays_so_where_infinite_logits_are_replaced(talker, options):
    """Four beams, and two texts: there is room for what is not allowed."""
    params = SamplingParams(regex="x[yz]", num_beams=4, num_return_sequences=4, remove_invalid_values=True, **options)
    assert sorted(one.text for one in talker.generate("the", params)) == ["xy", "xz"]


def test_where_another_option_leaves_nothing_of_the_form_both_are_named(talker):
    digits = [talker.tokenizer.backend.token_to_id(digit) for digit in "0123456789"]
    with pytest.raises(BloomeryError, match="no token is left to choose at generated token 1: try it without regex or"):
        talker.generate("the", SamplingParams(regex="x[0-9]", suppress_tokens=digits))
    with pytest.raises(BloomeryError, match="try it without json_object or min_new_tokens or suppress_tokens"):
        talker.generate("the", SamplingParams(json_object=True, min_new_tokens=5, suppress_tokens=[*range(4, 777)]))


def test_a_stop_string_ends_a_text_before_its_form_is_complete(talker):
    params = SamplingParams(regex="abcdef", stop_strings=["cd"])
    done = talker.generate("the", params)[0]
    assert (done.text, done.finish_reason) == ("ab", "stop")
    done = talker.generate("the", SamplingParams(regex="abc", stop_strings=["cd"]))[0]
    assert (done.text, done.finish_reason) == ("abc", "stop")


def test_the_most_tokens_end_a_text_in_the_middle_of_its_form(talker):
    done = talker.generate("the", SamplingParams(regex="[a-z]{50}", max_new_tokens=3))[0]
    assert (done.finish_reason, len(done.token_ids)) == ("length", 3)
    assert re.fullmatch("[a-z]{3,49}", done.text)


def test_ends_of_sequence_are_chosen_only_where_the_form_may_end(folder, tmp_path):
    """Ids 2 and 3 end a text, and are likelier than anything else here."""
    llm = LLM(folder)
    likely = {2: 100, 3: 100}
    done = llm.generate("the", SamplingParams(regex="[a-z]{2}[a-z]*", logit_bias=likely))[0]
    assert done.finish_reason == "stop"
    assert done.token_ids[-1] in likely
    assert re.fullmatch("[a-z]{2,}", done.text)
    assert not set(done.token_ids[:-1]) & set(likely)
    on = llm.generate("the", SamplingParams(regex="[a-z]{2}[a-z]*", logit_bias=likely, ignore_eos=True))[0]
    assert (on.finish_reason, len(on.token_ids), set(on.token_ids) & set(likely)) == ("length", 100, set())


@pytest.mark.parametrize("options", [{"ignore_eos": True}, {}])
def test_a_complete_text_ends_without_an_end_of_sequence(folder, tmp_path, options):
    endless = tmp_path / "endless"
    shutil.copytree(folder, endless)
    if not options:
        (endless / "generation_config.json").unlink()
        config = json.loads((endless / "config.json").read_text()) | {"eos_token_id": None}
        (endless / "config.json").write_text(json.dumps(config))
    llm = LLM(endless)
    assert bool(llm.folder.eos_ids) == bool(options)
    done = llm.generate("the", SamplingParams(regex="[ab]{3}", temperature=1.0, seed=4, **options))[0]
    assert done.finish_reason == "stop"
    assert re.fullmatch("[ab]{3}", done.text)


def test_log_probabilities_are_the_models_own(talker):
    done = talker.generate("the cat", SamplingParams(regex="[xyz]{4}", logprobs=0))[0]
    prompt = list(done.prompt_ids)
    scored = talker.score([(prompt, list(done.token_ids))])[0]
    assert [token.logprob for token in done.logprobs] == pytest.approx(scored.logprobs, abs=1e-4)


def test_beams_of_a_small_language_give_all_its_texts_once_and_no_more(dickens):
    """Every text is spelled in one way only, since each begins another one's token."""
    params = SamplingParams(regex="[xyz]", num_beams=5, num_return_sequences=5)
    assert sorted(one.text for one in dickens.generate("x", params)) == ["x", "y", "z"]


def test_a_request_that_cannot_go_on_leaves_the_others_alone(talker):
    other = SamplingParams(max_new_tokens=200, ignore_eos=True)
    likely = {talker.tokenizer.backend.token_to_id("a"): 100}
    costly = SamplingParams(grammar='start: a{1000}\na: "a"{0,1000} | "b"', logit_bias=likely, max_new_tokens=200)
    bad, good = talker.stream("the", costly), talker.stream("the", other)
    tokens = next(good).token_ids
    for _ in range(50):
        next(bad)
        tokens += next(good).token_ids
    with pytest.raises(BloomeryError, match="grammar cannot be followed beyond generated token"):
        list(bad)
    for piece in good:
        tokens += piece.token_ids
    assert tokens == talker.generate("the", other)[0].token_ids
    assert talker.engine.idle
