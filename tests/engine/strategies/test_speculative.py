"""Guessed tokens: what is generated is what is generated without them, whatever guesses, and whatever else runs."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch

from bloomery import SamplingParams
from bloomery.engine.engine import Engine
from bloomery.engine.request import Request
from bloomery.engine.strategies.beams import BeamSearch
from bloomery.engine.strategies.sampling import Sampling
from bloomery.engine.strategies.scoring import Scoring
from bloomery.engine.strategies.speculative import Speculative
from bloomery.engine.strategy import Said, Speculation, Strategy, Token
from bloomery.model.decoder import Decoder
from conftest import Tiny
from drive import load

CHEAP = 0.1
"""What a draft is said to cost, so that guessing pays."""
LENGTHS = (1, 12, 64, 130)
NEW = 40
GUESSES = ("lookup", "draft")


def noisy(decoder: Decoder, part: float) -> Decoder:
    """A decoder that mostly, but not always, agrees: noise of a part of each tensor's standard deviation."""
    other, generator = deepcopy(decoder), torch.Generator().manual_seed(3)
    for weight in other.parameters():
        if weight.dim() > 1:
            weight.data += part * weight.data.std() * torch.randn(weight.shape, generator=generator)
    return other


def params_for(guess: str, **options: Any) -> SamplingParams:
    lookup = {"prompt_lookup_num_tokens": 6} if guess == "lookup" else {}
    return SamplingParams(**({"max_new_tokens": NEW} | lookup | options))


def speculative(guess: str, prompt: list[int], eos_ids: tuple[int, ...] = (), **options: Any) -> Speculative:
    draft = None if guess == "lookup" else CHEAP
    return Speculative(prompt, params_for(guess, **options), eos_ids, draft=draft)


def engine_for(decoder: Decoder, draft: Decoder | None = None, **options: Any) -> Engine:
    return Engine(decoder, **({"max_seq_len": 192, "max_batch_size": 6, "draft": draft} | options))


def run(engine: Engine, strategies: list[Any]) -> list[list[Said]]:
    """Everything that each strategy said, in order. No block is held in the end."""
    requests = [Request(strategy) for strategy in strategies]
    said: dict[int, list[Said]] = {id(request): [] for request in requests}
    for request in requests:
        engine.add(request)
    for _ in range(2000):
        if engine.idle:
            break
        for update in engine.step():
            assert update.error is None
            said[id(update.request)].append(update.said)
    assert engine.idle
    for pool in engine.scheduler.pools:
        assert pool.free == list(range(pool.size))
    return [said[id(request)] for request in requests]


def tokens(said: list[Said], choice: int = 0) -> list[int]:
    return [token.id for one in said if one.choice == choice for token in one.tokens]


def outcome(said: list[Said]) -> Speculation:
    found = said[-1].speculation
    assert found is not None
    return found


def repeating(tiny: Tiny, length: int) -> list[int]:
    """A prompt in which there is something to look up."""
    return (tiny.prompt(min(length, 7)) * length)[:length]


@pytest.mark.parametrize("guess", GUESSES)
def test_greedy_text_is_that_of_transformers_in_every_family(checkpoint: Tiny, guess: str) -> None:
    decoder = load(checkpoint.path)
    engine = engine_for(decoder, noisy(decoder, 0.15))
    prompts = [checkpoint.prompt(12), checkpoint.prompt(65), repeating(checkpoint, 40)]
    expected = [checkpoint.greedy(prompt)[:NEW] for prompt in prompts]
    together = run(engine, [speculative(guess, prompt) for prompt in prompts])
    assert [tokens(said) for said in together] == expected
    assert sum(outcome(said).proposed for said in together) > 0
    # A token of the text ends it in the middle.
    ends = [text[len(text) // 2] for text in expected]
    ended = run(engine, [speculative(guess, prompt, (end,)) for prompt, end in zip(prompts, ends, strict=True)])
    for said, text, end in zip(ended, expected, ends, strict=True):
        assert tokens(said) == text[: text.index(end) + 1]
        assert said[-1].finish == "stop"


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5, 3.0])
def test_guesses_good_and_bad_leave_greedy_text_as_it_is(bloom: Tiny, guess: str, noise: float) -> None:
    decoder = load(bloom.path)
    prompts = [repeating(bloom, length) for length in LENGTHS]
    plain = run(engine_for(decoder), [Sampling(prompt, SamplingParams(max_new_tokens=NEW)) for prompt in prompts])
    guessed = run(engine_for(decoder, noisy(decoder, noise)), [speculative(guess, prompt) for prompt in prompts])
    assert [tokens(said) for said in guessed] == [tokens(said) for said in plain]
    if guess == "draft" and noise == 0.0:
        for said in guessed:
            assert outcome(said).accepted == outcome(said).proposed
            assert outcome(said).steps == 1 + -(-(NEW - 1) // 6)  # 5 guesses and one more


def test_looked_up_tokens_are_those_of_plain_sampling_too(bloom: Tiny) -> None:
    decoder = load(bloom.path)
    options = {"temperature": 0.5, "top_k": 8, "seed": 4, "num_return_sequences": 2, "logprobs": 2}
    prompts = [repeating(bloom, length) for length in LENGTHS]
    plain = run(
        engine_for(decoder), [Sampling(prompt, SamplingParams(max_new_tokens=NEW, **options)) for prompt in prompts]
    )
    guessed = run(engine_for(decoder), [speculative("lookup", prompt, **options) for prompt in prompts])
    for one, other in zip(plain, guessed, strict=True):
        for choice in range(2):
            expected, found = (
                [token for piece in said if piece.choice == choice for token in piece.tokens] for said in (one, other)
            )
            assert [token.id for token in found] == [token.id for token in expected]
            for mine, theirs in zip(found, expected, strict=True):
                assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
                assert [token for token, _ in mine.top] == [token for token, _ in theirs.top]
    assert sum(piece.speculation.accepted for said in guessed for piece in said if piece.speculation) > 0


OPTIONS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 20},
    {"suppress_tokens": [5, 6], "logit_bias": {7: 2.0}, "sequence_bias": {(8, 9): 3.0}},
    {"max_length": 70},
    {"forced_eos_token_id": 3},
    {"exponential_decay_length_penalty": (5, 1.5)},
    {"max_new_tokens": 1},
    {"max_new_tokens": 2},
]


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_every_option_means_the_same_with_guesses(bloom: Tiny, guess: str, options: dict[str, Any]) -> None:
    decoder = load(bloom.path)
    prompt, given = repeating(bloom, 60), {"max_new_tokens": NEW} | options
    if "max_length" in options:
        del given["max_new_tokens"]
    eos = tuple(bloom.greedy(prompt)[9:11])
    (plain,) = run(engine_for(decoder), [Sampling(prompt, SamplingParams(**given), eos)])
    lookup = {"prompt_lookup_num_tokens": 6} if guess == "lookup" else {}
    strategy = Speculative(prompt, SamplingParams(**given, **lookup), eos, draft=None if lookup else CHEAP)
    (guessed,) = run(engine_for(decoder, noisy(decoder, 0.1)), [strategy])
    assert tokens(guessed) == tokens(plain)
    assert guessed[-1].finish == plain[-1].finish


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_request_is_the_same_alone_in_any_batch_and_preempted(bloom: Tiny, guess: str, temperature: float) -> None:
    decoder = load(bloom.path)
    draft = noisy(decoder, 0.15)
    options = {"temperature": temperature, "seed": 6, "max_new_tokens": 60}

    def texts(order: int = 1, **engine_options: Any) -> tuple[list[list[int]], int]:
        engine = engine_for(decoder, draft, **engine_options)
        strategies = [speculative(guess, repeating(bloom, length), **options) for length in LENGTHS]
        said = run(engine, strategies[::order])[::order]
        return [tokens(one) for one in said], engine.scheduler.preempted

    alone, _ = texts(max_batch_size=1)
    assert texts()[0] == alone
    assert texts(order=-1, max_step_tokens=7)[0] == alone
    tight, preempted = texts(max_step_tokens=50, blocks=4)
    assert preempted > 0
    assert tight == alone


def test_several_texts_of_a_draft_are_each_what_one_alone_is_in_any_batch(bloom: Tiny) -> None:
    decoder = load(bloom.path)
    options = {"temperature": 0.8, "seed": 2, "num_return_sequences": 3}
    draft = noisy(decoder, 0.1)
    prompts = [bloom.prompt(70), bloom.prompt(5)]
    together = run(engine_for(decoder, draft), [speculative("draft", prompt, **options) for prompt in prompts])
    for prompt, said in zip(prompts, together, strict=True):
        (one,) = run(engine_for(decoder, draft), [speculative("draft", prompt, **options)])
        (single,) = run(engine_for(decoder, draft), [speculative("draft", prompt, **{**options, **ONE})])
        assert [tokens(said, n) for n in range(3)] == [tokens(one, n) for n in range(3)]
        assert tokens(said) == tokens(single)
        assert len({tuple(tokens(said, n)) for n in range(3)}) == 3
        assert sum(piece.speculation is not None for piece in said) == 3


ONE = {"num_return_sequences": 1}


def test_best_of_ranks_the_same_texts(bloom: Tiny) -> None:
    decoder = load(bloom.path)
    options = {"temperature": 0.8, "seed": 2, "num_return_sequences": 2, "best_of": 4}
    prompt = repeating(bloom, 20)
    (plain,) = run(engine_for(decoder), [Sampling(prompt, SamplingParams(max_new_tokens=NEW, **options))])
    (guessed,) = run(engine_for(decoder), [speculative("lookup", prompt, **options)])
    assert [tokens(guessed, n) for n in range(2)] == [tokens(plain, n) for n in range(2)]
    assert [one.score for one in guessed] == pytest.approx([one.score for one in plain], abs=1e-5)


def test_guesses_change_nothing_for_what_runs_beside_them(bloom: Tiny) -> None:
    decoder = load(bloom.path)

    def mixed() -> list[Callable[[], Strategy]]:
        prompt = repeating(bloom, 50)
        beams = SamplingParams(num_beams=3, max_new_tokens=20)
        return [
            lambda: speculative("draft", prompt),
            lambda: Sampling(bloom.prompt(20), SamplingParams(max_new_tokens=30, temperature=0.9, seed=1)),
            lambda: speculative("draft", bloom.prompt(64), temperature=0.9, seed=3),
            lambda: BeamSearch(bloom.prompt(33), beams),
            lambda: speculative("lookup", prompt, max_new_tokens=25),
            lambda: Scoring(bloom.prompt(80), scored=79),
        ]

    draft = noisy(decoder, 0.15)
    alone = [run(engine_for(decoder, draft), [make()])[0] for make in mixed()]
    for options in ({"max_batch_size": 9}, {"max_batch_size": 4}, {"max_batch_size": 9, "blocks": 9}):
        together = run(engine_for(decoder, draft, **options), [make() for make in mixed()])
        assert [tokens(said) for said in together] == [tokens(said) for said in alone]


@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_the_model_runs_once_a_step_for_all_who_guess(bloom: Tiny, noise: float) -> None:
    """Drafts go first, however many guesses each makes: the model is never run for a part of those who wait for it."""
    decoder = load(bloom.path)
    engine = engine_for(decoder, noisy(decoder, noise))
    found = run(engine, [speculative("draft", bloom.prompt(12, seed), max_new_tokens=25) for seed in range(4)])
    steps = [outcome(said).steps - 1 for said in found]
    assert engine.decoding.tokens == 4 * 24
    assert engine.decoding.steps == max(steps)
    if noise:
        assert len(set(steps)) > 1
    else:
        assert steps == [4] * 4  # 6 tokens a step
        assert engine.decoding.draft_steps == 4 * 5 - 1  # the first of them reads the prompt


@pytest.mark.parametrize("guess", GUESSES)
def test_guesses_never_take_more_positions_than_the_text_may_have(bloom: Tiny, guess: str) -> None:
    decoder = load(bloom.path)
    prompt = repeating(bloom, 54)
    engine = engine_for(decoder, decoder, max_seq_len=64, max_batch_size=1, blocks=1)
    strategy = speculative(guess, prompt, max_new_tokens=11)
    (said,) = run(engine, [strategy])
    assert tokens(said) == bloom.greedy(prompt)[:11]
    assert engine.scheduler.preempted == 0


class Stop:
    """Ends a text at its n-th token."""

    def __init__(self, at: int, seen: tuple[int, ...] = ()) -> None:
        self.at, self.seen = at, seen

    def advance(self, token_id: int) -> bool:
        self.seen = (*self.seen, token_id)
        return len(self.seen) == self.at

    def allowed(self) -> None:
        return None

    def fork(self) -> "Stop":
        return Stop(self.at, self.seen)


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("at", [1, 2, 7, 12])
def test_what_watches_a_text_sees_its_tokens_only_and_ends_it_in_the_middle_of_right_guesses(
    bloom: Tiny, guess: str, at: int
) -> None:
    decoder = load(bloom.path)
    prompt, watch = repeating(bloom, 30), Stop(at)
    strategy = Speculative(prompt, params_for(guess), (), watch, draft=None if guess == "lookup" else CHEAP)
    (said,) = run(engine_for(decoder, decoder), [strategy])
    assert tokens(said) == bloom.greedy(prompt)[:at] == list(watch.seen)
    assert said[-1].finish == "stop"


def test_time_that_is_over_ends_a_text_among_its_guesses(bloom: Tiny) -> None:
    decoder = load(bloom.path)
    ticks = iter(range(1000))
    strategy = Speculative(
        bloom.prompt(9), SamplingParams(max_time=11.5), draft=CHEAP, clock=lambda: float(next(ticks))
    )
    (said,) = run(engine_for(decoder, decoder), [strategy])
    assert said[-1].finish == "length"
    assert 1 < len(tokens(said)) < 12  # the draft asks for the time too


def test_a_draft_that_gives_no_numbers_is_named(bloom: Tiny) -> None:
    decoder, broken = load(bloom.path), load(bloom.path)
    next(iter(broken.parameters())).data.fill_(torch.nan)
    engine = engine_for(decoder, broken)
    engine.add(Request(speculative("draft", bloom.prompt(9))))
    updates = [update for _ in range(3) for update in engine.step()]
    assert "the draft model gave logits that are not finite" in str(updates[-1].error)
    assert engine.idle


def test_a_step_says_all_its_tokens_at_once(bloom: Tiny) -> None:
    decoder = load(bloom.path)
    (said,) = run(engine_for(decoder, decoder), [speculative("draft", bloom.prompt(9), max_new_tokens=13)])
    assert [len(one.tokens) for one in said] == [1, 6, 6]
    assert all(isinstance(token, Token) for one in said for token in one.tokens)
    assert outcome(said) == Speculation(proposed=10, accepted=10, steps=3)
