"""How searches with beams end: stop strings, time, options that leave nothing; and that preemption changes no text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from bloomery import LLM, SamplingParams
from bloomery.engine.engine import Engine
from bloomery.engine.request import Request
from bloomery.engine.strategies.beams import BeamSearch
from bloomery.engine.strategies.build import build_strategy
from bloomery.engine.strategies.constrained import ConstrainedBeams
from bloomery.engine.strategies.groups import DiverseBeams
from bloomery.engine.strategy import Said
from bloomery.errors import BloomeryError
from conftest import Tiny
from drive import load
from oracles.cases import ENDS, answers, cases
from talker import EOS, build_talker

SEARCHES: dict[str, tuple[type, dict[str, Any]]] = {
    "beams": (BeamSearch, {"num_beams": 4}),
    "groups": (DiverseBeams, {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}),
    "words": (ConstrainedBeams, {"num_beams": 4, "force_words_ids": [[300, 301]]}),
}
SIZE, PAD = 777, 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_talker(tmp_path_factory.mktemp("ends") / "talker")


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def theirs(model: Any, prompt: list[int], options: dict[str, Any], **more: Any) -> list[tuple[list[int], float]]:
    """Texts and scores, without places that stayed empty."""
    told = {"do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    config = GenerationConfig(eos_token_id=[EOS, 3], pad_token_id=PAD, **told, **options)
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, **more)
    rows = [row[: row.index(PAD)] if PAD in row else row for row in out.sequences[:, len(prompt) :].tolist()]
    return [(row, s) for row, s in zip(rows, out.sequences_scores.tolist(), strict=True) if s > -1e8]


def expect(ours: list[Any], expected: list[tuple[list[int], float]]) -> None:
    assert [list(one.token_ids) for one in ours] == [ids for ids, _ in expected]
    assert [one.score for one in ours] == pytest.approx([score for _, score in expected], rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("early", [False, True, "never"])
def test_stop_strings_end_beams_as_in_transformers(llm: LLM, model: Any, folder: Path, early: Any) -> None:
    others = [t for t in range(SIZE) if not llm.tokenizer.decode([t]).strip().isalpha()]
    options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 16, "suppress_tokens": others}
    text = llm.generate("the cat", SamplingParams(**options))[0].text
    stops = [text[6:9], text[12]]
    options |= {"early_stopping": early}
    ours = llm.generate("the cat", SamplingParams(stop_strings=stops, **options))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    prompt = llm.encode("the cat")
    expect(ours, theirs(model, prompt, options | {"stop_strings": stops}, tokenizer=tokenizer))
    assert "stop" in {one.finish_reason for one in ours}
    assert not any(stop in one.text for one in ours for stop in stops)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_whose_time_is_up_gives_what_a_shorter_one_finds(bloom: Tiny, name: str) -> None:
    search, options = SEARCHES[name]
    decoder = load(bloom.path)

    def found(**more: Any) -> list[Said]:
        params = SamplingParams(num_return_sequences=2, **options, **more)
        strategy = search([5, 6, 7], params, clock=lambda: float(strategy.frontier.length))  # a second each step
        return run(Engine(decoder, max_seq_len=64, max_batch_size=4), [strategy])[0]

    timed = found(max_time=6.5, max_new_tokens=40)
    assert timed == found(max_new_tokens=8)
    assert {said.finish for said in timed} == {"length"}


def run(engine: Engine, strategies: list[Any]) -> list[list[Said]]:
    """What each has said at its end."""
    requests = [Request(strategy) for strategy in strategies]
    said: dict[int, list[Said]] = {id(request): [] for request in requests}
    for request in requests:
        engine.add(request)
    while not engine.idle:
        for update in engine.step():
            if update.error is not None:
                raise update.error
            said[id(update.request)].append(update.said)
    assert engine.scheduler.pool.free == list(range(engine.scheduler.pool.size))
    return [said[id(request)] for request in requests]


@pytest.mark.parametrize("shape", ENDS)
@pytest.mark.parametrize(("blocks", "seats", "tokens"), [(None, 40, 512), (16, 40, 32), (17, 40, 16)])
def test_searches_of_all_kinds_together_in_little_memory_find_what_each_finds_alone(
    tiny: Callable[[str], Tiny], shape: str, blocks: int | None, seats: int, tokens: int
) -> None:
    """Alone is what transformers 4.55.4 was asked; preempted, in chunks and beside others it must be the same."""
    answered = answers()["answers"]
    asked = {n: case for n, case in cases().items() if case["shape"] == shape and "texts" in answered.get(n, ())}
    ends, decoder = tuple(ENDS[shape]), load(tiny(shape).path)
    strategies = [build_strategy(case["prompt"], SamplingParams(**case["options"]), ends) for case in asked.values()]
    engine = Engine(decoder, max_seq_len=192, max_batch_size=seats, max_step_tokens=tokens, blocks=blocks)
    for name, texts in zip(asked, run(engine, strategies), strict=True):
        expected = answered[name]["texts"]
        # Whichever end of sequence was chosen, transformers writes the first.
        ours = [[ends[0] if token.id in ends else token.id for token in said.tokens] for said in texts]
        assert ours[: len(expected)] == expected, name
    assert (engine.scheduler.preempted > 0) == (blocks is not None)


def test_where_few_texts_exist_those_are_given(llm: LLM, model: Any) -> None:
    """As transformers finds them, which fills up what is missing with padding."""
    allowed = [300, 301]
    options = {
        "num_beams": 5,
        "num_return_sequences": 5,
        "max_new_tokens": 2,
        "suppress_tokens": [token for token in range(SIZE) if token not in allowed],
    }
    ours = llm.generate([[5, 6, 7]], SamplingParams(**options))
    expect(ours, theirs(model, [5, 6, 7], options))
    assert len(ours) == 4


def test_a_beam_that_may_not_go_on_leaves_the_others_alone(llm: LLM, model: Any) -> None:
    """Behind 300 nothing is allowed."""
    options = {
        "num_beams": 3,
        "num_return_sequences": 3,
        "max_new_tokens": 4,
        "suppress_tokens": [token for token in range(SIZE) if token not in (300, 301, 302)],
        "bad_words_ids": [[300, 300], [300, 301], [300, 302]],
    }
    ours = llm.generate([[5, 6, 7]], SamplingParams(**options))
    expect(ours, theirs(model, [5, 6, 7], options))
    assert all(300 not in one.token_ids[:-1] for one in ours)


NOTHING = {"suppress_tokens": [t for t in range(SIZE) if t not in (300, 301)], "no_repeat_ngram_size": 1}


@pytest.mark.parametrize("name", SEARCHES)
def test_where_no_text_can_go_on_the_error_names_what_forbids_it(llm: LLM, name: str) -> None:
    with pytest.raises(BloomeryError, match="no token is left to choose") as caught:
        llm.generate([[5, 6, 7]], SamplingParams(max_new_tokens=4, **NOTHING, **SEARCHES[name][1]))
    assert "\n" not in str(caught.value)
    assert llm.engine.idle


@pytest.mark.parametrize("name", SEARCHES)
def test_texts_that_have_ended_are_given_where_no_other_can_go_on(llm: LLM, name: str) -> None:
    """Only 300, 301 and an end are allowed, none twice."""
    nothing = NOTHING | {"suppress_tokens": [t for t in range(SIZE) if t not in (300, 301, EOS)]}
    ours = llm.generate([[5, 6, 7]], SamplingParams(max_new_tokens=9, **nothing, **SEARCHES[name][1]))
    assert len(ours) == 1
    assert ours[0].token_ids[-1] == EOS
    assert ours[0].finish_reason == "stop"


@pytest.mark.parametrize("name", SEARCHES)
def test_logprobs_of_beams_are_the_models_and_add_up_to_the_score(llm: LLM, model: Any, name: str) -> None:
    params = SamplingParams(max_new_tokens=12, num_return_sequences=3, logprobs=2, **SEARCHES[name][1])
    for one in llm.generate([[5, 6, 7]], params):
        ids = torch.tensor([[5, 6, 7, *one.token_ids]])
        with torch.inference_mode():
            logprobs = model(ids).logits[0, 2:-1].log_softmax(-1)
        assert one.logprobs is not None
        for row, token in zip(logprobs, one.logprobs, strict=True):
            assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
            assert [id for id, _ in token.top] == row.topk(2).indices.tolist()
        if name != "groups":  # whose scores are less the penalty
            assert one.score == pytest.approx(sum(t.logprob for t in one.logprobs) / len(one.logprobs), abs=1e-5)


def test_a_last_word_that_one_group_has_taken_counts_for_the_next(llm: LLM) -> None:
    """A stop string ends both texts with their first token, and the second group must take another."""
    options = {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 100.0, "num_return_sequences": 2}
    options |= {"sequence_bias": {(token,): 20.0 for token in range(70, 90)}}  # tokens of visible characters
    free = llm.generate("the cat", SamplingParams(max_new_tokens=1, **options))
    stops = [llm.tokenizer.decode(list(one.token_ids)) for one in free if llm.tokenizer]
    assert len(set(stops)) == 2
    assert all(stops)
    ended = llm.generate("the cat", SamplingParams(max_new_tokens=5, stop_strings=stops, **options))
    assert {one.token_ids for one in ended} == {one.token_ids for one in free}
