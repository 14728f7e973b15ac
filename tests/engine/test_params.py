"""SamplingParams refuses what cannot be right, or would be ignored, in one line that says what to do."""

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
        ({"max_new_tokens": None}, "max_new_tokens is None"),
        ({"logprobs": True}, "logprobs is True"),
        ({"stop_strings": "abc"}, "stop_strings is 'abc'"),
        ({"stop_strings": (1,)}, "stop_strings is"),
        ({"seed": 2**64}, "seed is"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"stop_strings": ("a", "")}, "stop string is empty"),
        ({"top_p": 0.9}, "top_p would have no effect at temperature 0"),
        ({"top_k": 5, "min_p": 0.1}, "top_k and min_p would have no effect"),
    ],
)
def test_a_wrong_value_is_refused_by_name(wrong, named):
    with pytest.raises(UsageError, match=named.replace("(", r"\(")) as caught:
        SamplingParams(**wrong)
    assert "\n" not in str(caught.value)


def test_the_default_is_greedy_and_a_hundred_tokens():
    params = SamplingParams()
    assert (params.temperature, params.max_new_tokens, params.ignore_eos) == (0, 100, False)
