"""Requests that generate in different ways, in one engine at once: each gets the tokens that it gets alone."""

import random
from collections import defaultdict

import pytest

from bloomery import SamplingParams
from bloomery.engine.engine import Engine
from bloomery.engine.request import Request
from bloomery.engine.strategies.build import build_strategy
from bloomery.model.cache import Beginning
from drive import load, one_row, step
from tiny import Tiny

WAYS = [
    {},
    {"temperature": 0.9, "seed": 1},
    {"temperature": 0.9, "num_return_sequences": 3, "seed": 2},
    {"temperature": 1.1, "best_of": 3, "seed": 3},
    {"num_beams": 3},
    {"num_beams": 3, "temperature": 1.0, "seed": 4, "num_return_sequences": 2},
    {"guidance_scale": 2.0, "negative_prompt_ids": [5] * 66},
    {"guidance_scale": 1.5, "temperature": 1.0, "seed": 5, "num_return_sequences": 2},
    {"guidance_scale": 2.5, "num_beams": 2, "negative_prompt_ids": [8, 9]},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"penalty_alpha": 0.3, "top_k": 3, "prompt_logprobs": 0},
]
LENGTHS = (1, 5, 63, 70)


def run(engine: Engine, asked: list[tuple[list[int], dict[str, object]]]) -> list[dict[int, list[int]]]:
    """Tokens of each request's texts."""
    requests = [Request(build_strategy(prompt, SamplingParams(max_new_tokens=16, **way))) for prompt, way in asked]
    said: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for request in requests:
        engine.add(request)
    while not engine.idle:
        for update in engine.step():
            assert update.error is None
            said[id(update.request)][update.said.choice] += [token.id for token in update.said.tokens]
    return [dict(said[id(request)]) for request in requests]


@pytest.mark.parametrize("seed", range(2))
def test_any_ways_together_give_the_tokens_they_give_alone(either: Tiny, seed: int) -> None:
    """In another order, in small steps, on few seats, and with blocks for so few that some give way."""
    decoder, chance = load(either.path), random.Random(seed)
    asked = [(either.prompt(length, n), way) for n, way in enumerate(WAYS) for length in chance.sample(LENGTHS, 2)]
    chance.shuffle(asked)
    alone = Engine(decoder, max_seq_len=128, max_batch_size=8)
    expected = [run(alone, [one])[0] for one in asked]
    together = Engine(decoder, max_seq_len=128, max_batch_size=16, max_step_tokens=11, blocks=9)
    assert run(together, asked) == expected
    assert together.scheduler.preempted
    assert len(together.scheduler.pool.free) == 9


def test_a_guided_text_and_its_shadow_both_stand_behind_the_beginning(either: Tiny) -> None:
    """As virtual tokens do: the same as real ones in front of both prompts."""
    decoder, first = load(either.path), either.prompt(20, 9)
    cache, row = one_row(decoder, len(first))
    step(decoder, cache, [row], [first])
    beginning = Beginning(
        *(pool.transpose(2, 3).flatten(1, 2)[:, : len(first)] for pool in (cache.keys.numbers, cache.values.numbers))
    )
    prompt, negative = either.prompt(7), either.prompt(50)
    way = {"guidance_scale": 2.0, "negative_prompt_ids": negative}
    begun = Engine(decoder, max_seq_len=128, max_batch_size=2, beginning=beginning)
    whole = Engine(decoder, max_seq_len=128, max_batch_size=2)
    expected = run(whole, [(first + prompt, way | {"negative_prompt_ids": first + negative})])
    assert run(begun, [(prompt, way)]) == expected
    assert run(begun, [(prompt, {})]) != expected
