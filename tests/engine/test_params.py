"""SamplingParams refuses what cannot be right, or would be ignored, in one line that says what to do."""

import re
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import pytest

from bloomery import SamplingParams, UsageError


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 5, "min_new_tokens": 6}, "min_new_tokens is 6"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 1, "top_k": 0}, "top_k is 0"),
        ({"temperature": 1, "top_p": 0}, "top_p is 0"),
        ({"temperature": 1, "top_p": 1.5}, "top_p is 1.5"),
        ({"temperature": 1, "min_p": -1}, "min_p is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"temperature": 1e-40}, "temperature is 1e-40"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"max_new_tokens": 3.5}, "max_new_tokens is 3.5"),
        ({"min_new_tokens": None}, "min_new_tokens is None"),
        ({"temperature": None}, "temperature is None"),
        ({"max_new_tokens": 5, "max_length": 9}, "max_length 9 and max_new_tokens 5 .*: drop max_length"),
        ({"max_new_tokens": 100, "max_length": 90}, "max_length 90 and max_new_tokens 100"),
        ({"max_length": 1}, "max_length is 1"),
        ({"max_length": 9, "min_length": 10}, "min_length 10 cannot be reached within max_length 9"),
        ({"max_length": 9, "min_new_tokens": 9}, "min_new_tokens 9 cannot be reached within max_length 9"),
        ({"min_new_tokens": 101}, "min_new_tokens is 101"),
        ({"min_length": 0}, "min_length is 0"),
        ({"max_time": 0}, "max_time is 0"),
        ({"max_time": float("inf")}, "max_time is inf"),
        ({"temperature": 1, "top_h": 0}, "top_h is 0: give a number in (0, 1]"),
        ({"temperature": 1, "typical_p": 1.1}, "typical_p is 1.1"),
        ({"temperature": 1, "epsilon_cutoff": 0}, "epsilon_cutoff is 0"),
        ({"temperature": 1, "eta_cutoff": 1}, "eta_cutoff is 1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"encoder_repetition_penalty": float("nan")}, "encoder_repetition_penalty is nan"),
        ({"frequency_penalty": 2.1}, "frequency_penalty is 2.1: give a number in [-2, 2]"),
        ({"presence_penalty": -3}, "presence_penalty is -3"),
        ({"no_repeat_ngram_size": 0}, "no_repeat_ngram_size is 0"),
        ({"encoder_no_repeat_ngram_size": 1.0}, "encoder_no_repeat_ngram_size is 1.0"),
        ({"bad_words": ("a", " ")}, "bad word is empty"),
        ({"bad_words": "a"}, "bad_words is 'a'"),
        ({"bad_words_ids": [[]]}, "bad_words_ids has []: write it as 1,2,3"),
        ({"bad_words_ids": ["the cat"]}, "bad_words_ids has 'the cat'"),
        ({"bad_words_ids": [[-1]]}, "bad_words_ids has [-1]"),
        ({"bad_words_ids": [5]}, "bad_words_ids has 5"),
        ({"bad_words_ids": "1,2"}, "bad_words_ids is '1,2'"),
        ({"sequence_bias": ["1,2"]}, "sequence_bias has '1,2': write it as 1,2,3=-5.0"),
        ({"sequence_bias": ["=2"]}, "sequence_bias has '=2'"),
        ({"sequence_bias": {(): 2}}, "sequence_bias has"),
        ({"sequence_bias": {(1,): float("inf")}}, "sequence_bias has"),
        ({"sequence_bias": {(1,): float("nan")}}, "sequence_bias has"),
        ({"sequence_bias": ["1,2=3", "1, 2=4"]}, "sequence_bias gives 1,2 two biases: keep one"),
        ({"logit_bias": ["1,2=3"]}, "logit_bias has '1,2=3': write it as 15=2.5"),
        ({"logit_bias": {5: "hot"}}, "logit_bias has (5, 'hot')"),
        ({"logit_bias": {5: 101}}, "logit_bias has 5=101.0: give a bias in [-100, 100]"),
        ({"suppress_tokens": [-1]}, "suppress_tokens is [-1]"),
        ({"begin_suppress_tokens": ["a"]}, "begin_suppress_tokens is ['a']"),
        ({"forced_bos_token_id": -1}, "forced_bos_token_id is -1"),
        ({"forced_eos_token_id": 5, "suppress_tokens": [4, 5]}, "suppress_tokens forbids what forced_eos_token_id"),
        ({"forced_bos_token_id": 5, "suppress_tokens": 5}, "suppress_tokens forbids what forced_bos_token_id"),
        ({"exponential_decay_length_penalty": (5,)}, "exponential_decay_length_penalty is (5,): give two numbers"),
        ({"exponential_decay_length_penalty": (1.5, 2)}, "begins at 1.5: give a whole number"),
        ({"exponential_decay_length_penalty": (1, 0)}, "has the factor 0"),
        ({"exponential_decay_length_penalty": (1, 2), "ignore_eos": True}, "ignore_eos goes on past its end: drop one"),
        ({"remove_invalid_values": 1}, "remove_invalid_values is 1: give True or False"),
        ({"typical_p": 0.9, "eta_cutoff": 0.1}, "typical_p and eta_cutoff would have no effect at temperature 0"),
        ({"logprobs": True}, "logprobs is True"),
        ({"stop_strings": "abc"}, "stop_strings is 'abc'"),
        ({"stop_strings": (1,)}, "stop_strings is"),
        ({"seed": 2**64}, "seed is"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"stop_strings": ("a", "")}, "stop string is empty"),
        (
            {"num_beam_groups": 2, "diversity_penalty": 1.0},
            "num_beam_groups and diversity_penalty would have no effect",
        ),
        ({"num_beams": 4, "num_beam_groups": 0}, "num_beam_groups is 0"),
        (
            {"num_beams": 5, "num_beam_groups": 2, "diversity_penalty": 1},
            "num_beams 5 cannot be cut into num_beam_groups",
        ),
        ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups 2 would be 2 times the same: set diversity_penalty"),
        ({"num_beams": 4, "diversity_penalty": 1.0}, "diversity_penalty 1.0 is between groups .* drop it"),
        (
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0},
            "diversity_penalty is 0: give a positive number",
        ),
        (
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1, "temperature": 0.5},
            "num_beam_groups 2 takes the likeliest, and temperature 0.5 draws: drop one",
        ),
        (
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1, "force_words": ["a"]},
            "force_words and num_beam_groups 2 are two ways to search: drop one",
        ),
        ({"force_words": ["a"]}, "force_words would have no effect without beams: set num_beams"),
        ({"num_beams": 2, "force_words_ids": [[1]], "temperature": 1}, "force_words_ids takes the likeliest, and temp"),
        ({"num_beams": 2, "force_words": "cat"}, "force_words is 'cat': give a list of texts"),
        ({"num_beams": 2, "force_words": ["a", " "]}, "force_words has ' ', of which a word is empty"),
        ({"num_beams": 2, "force_words": ["cat|"]}, "force_words has 'cat|', of which a word is empty"),
        ({"num_beams": 2, "force_words": [[]]}, "force_words has [], of which a word is empty"),
        ({"num_beams": 2, "force_words": [["a|b", "c"]]}, "force_words has ['a|b', 'c']: '|' stands between the words"),
        ({"num_beams": 2, "force_words": [5]}, "force_words has 5: give a text"),
        ({"num_beams": 2, "force_words_ids": ["cat"]}, "force_words_ids has 'cat': write it as 1,2,3"),
        ({"num_beams": 2, "force_words_ids": [[]]}, "force_words_ids has []: write it as 1,2,3"),
        ({"num_beams": 2, "force_words_ids": [[[1], []]]}, "force_words_ids has [[1], []]: write it as 1,2,3"),
        ({"num_beams": 2, "force_words_ids": [[-1]]}, "force_words_ids has [-1]: write it as 1,2,3"),
        (
            {"num_beams": 2, "force_words_ids": ["5,6|5"]},
            "force_words_ids has 5,6|5: 5 begins 5,6, so leave the longer",
        ),
        ({"num_beams": 2, "force_words_ids": ["5|5"]}, "force_words_ids has 5|5: 5 begins 5"),
        (
            {"num_beams": 2, "force_words_ids": ["1,2|3"], "suppress_tokens": [2], "bad_words_ids": [[3]]},
            "force_words_ids asks for 1,2|3, which suppress_tokens or bad_words_ids forbid: drop it in one of them",
        ),
        ({"num_beams": 2, "length_penalty": 2000}, "length_penalty is 2000: give a number from -10 to 10"),
        (
            {"prompt_lookup_num_tokens": 10**30},
            "prompt_lookup_num_tokens is 1" + "0" * 30 + ": give a number in [1, 128]",
        ),
        (
            {"num_beams": 2, "force_words": ["a river"], "stop_strings": ["b", "river"]},
            "force_words asks for 'a river', and stop string 'river' would end the text before it: drop one of them",
        ),
        ({"top_p": 0.9}, "top_p would have no effect at temperature 0"),
        ({"top_k": 5, "min_p": 0.1}, "top_k and min_p would have no effect"),
    ],
)
def test_a_wrong_value_is_refused_by_name(wrong, named):
    with pytest.raises(UsageError, match=re.escape(named).replace(r"\.\*", ".*")) as caught:
        SamplingParams(**wrong)
    assert "\n" not in str(caught.value)


def test_the_default_is_greedy_and_a_hundred_tokens():
    params = SamplingParams()
    assert (params.temperature, params.most_new_tokens(7), params.ignore_eos) == (0, 100, False)


def test_max_length_counts_the_prompt_and_the_default_of_max_new_tokens_does_not_contradict_it():
    assert SamplingParams(max_length=30).most_new_tokens(7) == 23
    assert SamplingParams(max_length=300, min_new_tokens=150).most_new_tokens(7) == 293


def test_biases_and_sequences_mean_the_same_however_they_are_written():
    biased = SamplingParams(logit_bias={15: 2.5, 7: -100}, sequence_bias={(1, 2): -5, 3: 1.0})
    assert biased == SamplingParams(logit_bias=["15=2.5", "7=-1e2"], sequence_bias=["1, 2=-5", "3=1"])
    assert biased == SamplingParams(logit_bias={"15": 2.5, "7": -100}, sequence_bias=[[[1, 2], -5.0], [[3], 1.0]])
    assert biased == replace(biased)
    assert biased.logit_bias == ("15=2.5", "7=-100.0")
    assert SamplingParams(bad_words_ids=[[1, 2], (3,)]).bad_words_ids == ("1,2", "3")
    forced = SamplingParams(num_beams=2, force_words=["a", ["cat", "dog"]], force_words_ids=[[1, 2], [[3], (4, 5)]])
    assert forced == SamplingParams(num_beams=2, force_words=("a", "cat|dog"), force_words_ids=("1,2", "3|4, 5"))
    assert forced == replace(forced)
    assert (forced.force_words, forced.force_words_ids) == (("a", "cat|dog"), ("1,2", "3|4,5"))
    assert SamplingParams(forced_eos_token_id=5).forced_eos_token_id == (5,)


def test_every_option_has_a_line_in_the_documentation():
    tables = (Path(__file__).parents[2] / "docs" / "generation.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|", tables, re.MULTILINE)
    assert sorted(listed) == sorted(field.name for field in fields(SamplingParams))


def test_numbers_of_any_kind_become_pythons_own():
    params = SamplingParams(temperature=Fraction(1, 2), guidance_scale=Fraction(3, 2))
    assert (type(params.temperature), type(params.guidance_scale)) == (float, float)
    assert (params.temperature, params.guidance_scale) == (0.5, 1.5)
