"""What is looked up is what transformers looks up; what a draft guesses ends where the text would."""

import random

import pytest
import torch
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from bloomery import SamplingParams
from bloomery.engine.continuation import Continuation, Rules
from bloomery.engine.strategies.guessers import Draft, Lookup
from bloomery.engine.strategy import Token

EOS = 4


@pytest.mark.parametrize("longest", [1, 2, 3, 5])
@pytest.mark.parametrize("most", [1, 4, 10])
def test_look_ups_are_those_of_transformers_at_every_length_of_a_text(longest: int, most: int) -> None:
    """Texts of a few tokens, so that many n-grams come again."""
    theirs = PromptLookupCandidateGenerator(
        eos_token_id=torch.tensor([EOS]), num_output_tokens=most, max_matching_ngram_size=longest, max_length=1000
    )
    found = 0
    for seed in range(6):
        draws = random.Random(seed)
        ids = [draws.randrange(5) for _ in range(60)]
        start = draws.randrange(1, 20)
        rules = Rules(ids[:start], SamplingParams(max_new_tokens=100), (EOS,))
        text, lookup = Continuation(rules), Lookup(longest)
        for length in range(start, len(ids)):
            if draws.random() < 0.7:  # not at every step: what is new may be several tokens
                lookup.begin(text, most)
                expected = theirs.get_candidates(torch.tensor([ids[:length]]))[0][0, length:].tolist()
                assert [guess.token for guess in lookup.guesses] == expected
                found += len(expected)
            text.tokens.append(Token(ids[length]))
    assert found > 100


def test_a_draft_stops_guessing_where_the_text_would_end() -> None:
    logits = torch.zeros(9)
    text = Continuation(Rules([1, 2], SamplingParams(max_new_tokens=50), (EOS,)))
    draft = Draft(choice=0, held=0)
    draft.begin(text, 5)
    assert draft.row() == [1, 2]
    draft.take(logits.index_fill(0, torch.tensor([7]), 1.0))
    assert draft.row() == [7]
    draft.take(logits.index_fill(0, torch.tensor([EOS]), 1.0))
    assert draft.row() == []
    assert [guess.token for guess in draft.guesses] == [7, EOS]


def test_a_draft_takes_back_what_was_wrong_and_runs_what_it_has_not_seen() -> None:
    text = Continuation(Rules([1, 2], SamplingParams(max_new_tokens=50)))
    draft = Draft(choice=0, held=0)
    draft.begin(text, 3)
    for token in (5, 6, 7):
        draft.row()
        draft.take(torch.zeros(9).index_fill(0, torch.tensor([token]), 1.0))
    assert draft.row() == []
    for token in (5, 8):  # the second guess was wrong
        text.add(Token(token))
    assert draft.settle(right=1) == 1  # of 1, 2, 5, 6 the last
    draft.begin(text, 1)
    assert draft.row() == [8]


def test_a_draft_whose_guesses_leave_no_token_stops_and_ends_nothing() -> None:
    params = SamplingParams(max_new_tokens=50, no_repeat_ngram_size=1, suppress_tokens=[0])
    text = Continuation(Rules([1, 2], params))
    draft = Draft(choice=0, held=0)
    draft.begin(text, 5)
    for _ in range(2):
        assert draft.row()
        draft.take(torch.zeros(4))
    assert [guess.token for guess in draft.guesses] == [3]
    assert draft.row() == []
