"""Several texts behind one prompt: the first is the one a request for one gets, and each is its own."""

import pytest
import torch

from bloomery import LLM, SamplingParams, UsageError
from bloomery.engine.request import Request
from bloomery.engine.strategies.sampling import Sampling
from talker import build_talker

SAMPLED = {"max_new_tokens": 30, "temperature": 1.0, "seed": 7}
LENGTHS = (5, 70, 64, 1)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return LLM(build_talker(tmp_path_factory.mktemp("several") / "talker"), max_batch_size=8)


def prompts(llm):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4, llm.decoder.config.vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]


def test_the_first_of_several_is_the_one_that_a_request_for_one_gets(llm):
    several = llm.generate(prompts(llm), SamplingParams(num_return_sequences=4, **SAMPLED))
    alone = llm.generate(prompts(llm), SamplingParams(**SAMPLED))
    assert [one.token_ids for one in several if one.choice == 0] == [one.token_ids for one in alone]
    assert [one.choice for one in several] == [0, 1, 2, 3] * len(LENGTHS)
    assert len({one.token_ids for one in several}) == len(several)


@pytest.mark.parametrize("seats", [1, 2])
def test_several_of_each_prompt_are_the_same_in_any_batch(llm, seats):
    params = SamplingParams(num_return_sequences=4, **SAMPLED)
    narrow = LLM(llm.folder.path, max_batch_size=4 * seats)
    together = llm.generate(prompts(llm), params)
    assert [one.token_ids for one in narrow.generate(prompts(llm)[::-1], params)] == [
        one.token_ids for length in reversed(range(len(LENGTHS))) for one in together[4 * length : 4 * length + 4]
    ]


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_several_texts_share_the_prompts_blocks_and_copy_its_half_full_last_one_only(llm, length, monkeypatch):
    copied: list[tuple[int, int]] = []
    monkeypatch.setattr(llm.engine.runner.cache, "copy", copied.extend)
    monkeypatch.setattr(llm.engine.runner.cache, "clear", lambda blocks: None)
    strategy = Sampling([5] * length, SamplingParams(num_return_sequences=4, **SAMPLED))
    llm._turns.run([Request(strategy)])
    assert len(copied) == (3 if length % 64 else 0)  # the last that writes into it holds it alone


def test_best_of_gives_the_texts_that_the_model_finds_likeliest(llm):
    prompt = prompts(llm)[0]
    every = llm.generate(prompt, SamplingParams(num_return_sequences=6, logprobs=0, **SAMPLED))
    means = {one.token_ids: sum(t.logprob for t in one.logprobs) / len(one.token_ids) for one in every}
    best = llm.generate(prompt, SamplingParams(num_return_sequences=2, best_of=6, **SAMPLED))
    expected = sorted(means, key=means.__getitem__, reverse=True)[:2]
    assert [one.token_ids for one in best] == expected
    assert [one.score for one in best] == pytest.approx([means[ids] for ids in expected], abs=1e-9)
    assert [one.choice for one in best] == [0, 1]
    assert best[0].logprobs is None
    assert best[0].text == next(one.text for one in every if one.token_ids == best[0].token_ids)
    scored = llm.score([(prompt, list(best[0].token_ids))])[0]
    assert sum(scored.logprobs) / len(scored.logprobs) == pytest.approx(best[0].score, abs=1e-5)


def test_texts_end_each_at_its_own_place_and_stream_as_they_grow(llm):
    params = SamplingParams(num_return_sequences=5, stop_strings=["e"], **SAMPLED)
    grown: dict[tuple[int, int], str] = {}
    done = {}
    for piece in llm.stream(["the cat", "a dog"], params):
        grown[piece.index, piece.choice] = grown.get((piece.index, piece.choice), "") + piece.text
        if piece.completion is not None:
            done[piece.index, piece.choice] = piece.completion
    assert sorted(done) == [(index, choice) for index in range(2) for choice in range(5)]
    assert {place: one.text for place, one in done.items()} == grown
    assert all("e" not in one.text for one in done.values())
    assert len({len(one.token_ids) for one in done.values()}) > 1
    assert llm.engine.idle


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_return_sequences": 2}, "greedy has one text, and num_return_sequences asks for 2: set a temperature"),
        ({"best_of": 3}, "greedy has one text, and best_of asks for 3: set a temperature"),
        ({"best_of": 2, "num_return_sequences": 3, "temperature": 1}, "num_return_sequences 3 is more than best_of 2"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences 3 is more than num_beams 2 finds"),
        ({"num_beams": 2, "best_of": 2}, "num_beams 2 and best_of 2 both look for the best texts: drop best_of"),
        ({"length_penalty": 2.0}, "length_penalty would have no effect without beams: set num_beams"),
        ({"early_stopping": True}, "early_stopping would have no effect without beams: set num_beams"),
        ({"early_stopping": "soon", "num_beams": 2}, "early_stopping is 'soon': give True, False or never"),
        ({"num_beams": 0}, "num_beams is 0: give at least 1"),
        ({"num_return_sequences": 0}, "num_return_sequences is 0: ask for at least 1 text"),
    ],
)
def test_what_makes_no_sense_together_is_refused(options, said):
    with pytest.raises(UsageError, match=said):
        SamplingParams(**options)


def test_more_sequences_than_seats_are_refused(llm):
    with pytest.raises(UsageError, match="a request of 9 sequences at once does not fit a batch of 8"):
        llm.generate("the", SamplingParams(num_return_sequences=9, temperature=1))
