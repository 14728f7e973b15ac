"""When a search may end, against the function of transformers 5 that says so, whatever was found so far."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationMixin

from bloomery import SamplingParams
from bloomery.engine.continuation import Continuation, Rules
from bloomery.engine.strategies.found import Found
from bloomery.engine.strategies.frontier import Beam
from bloomery.engine.strategy import Token

PROMPT, NEW = [5, 6, 7], 20
totals = st.floats(-40, -0.5)


def beam(rules: Rules, length: int, total: float) -> Beam:
    text = Continuation(rules)
    text.tokens = [Token(9)] * length
    return Beam(text, total)


@settings(max_examples=600, derandomize=True, deadline=None, database=None)
@given(
    ended=st.lists(st.tuples(st.integers(1, NEW), totals), max_size=5),
    running=totals,
    length=st.integers(1, NEW - 1),
    penalty=st.sampled_from([-1.0, -0.2, 0.0, 0.5, 1.0, 2.0]),
    early=st.sampled_from([False, True, "never"]),
)
def test_whether_a_text_may_still_rank_is_what_transformers_says(ended, running, length, penalty, early) -> None:
    params = SamplingParams(num_beams=3, max_new_tokens=NEW, length_penalty=penalty, early_stopping=early)
    rules = Rules(PROMPT, params)
    found = Found(rules, 3)
    for tokens, total in ended:
        found.add(beam(rules, tokens, total))
    scores = sorted((total / tokens**penalty for tokens, total in ended), reverse=True)[:3]
    assert [one.score for one in found.ranked] == scores
    missing = 3 - len(scores)
    expected = GenerationMixin._check_early_stop_heuristic(
        torch.tensor([[True]]),
        torch.tensor([[running]], dtype=torch.float64),
        torch.tensor([scores + [-1e9] * missing], dtype=torch.float64),
        torch.tensor([[True] * len(scores) + [False] * missing]),
        len(PROMPT) + length,
        len(PROMPT) + NEW,
        len(PROMPT),
        early,
        penalty,
    )
    assert found.may_improve(running, length) == bool(expected)
