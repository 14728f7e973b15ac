"""A request's tokens are its own: whatever runs beside it, however steps are cut, padded, shared or taken back.

A new way to generate is a row of STRATEGIES, a new option of the engine one of LAYOUTS.
"""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from bloomery import SamplingParams
from bloomery.engine import runner
from bloomery.engine.engine import Engine
from bloomery.engine.options import EngineOptions
from bloomery.engine.request import Request
from bloomery.engine.start import start_engine
from bloomery.engine.strategies.build import build_strategy
from bloomery.model.decoder import Decoder
from conftest import Tiny
from drive import load

REQUESTS, LONGEST, MOST_NEW = 32, 400, 16
CONTEXT = 448
ENDS = (2, 3)
LIKELY_END = {2: 6.0}
DRAWN = {"temperature": 0.9}
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy that ends early": {"logit_bias": LIKELY_END, "min_new_tokens": 3},
    "greedy with penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.3},
    "greedy without repetitions": {"no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 3},
    "greedy from the prompt": {"encoder_repetition_penalty": 0.5, "min_length": 2, "logit_bias": LIKELY_END},
    "greedy with a decay": {"exponential_decay_length_penalty": (4, 1.5), "suppress_tokens": (0, 5)},
    "greedy with forced ends": {
        "forced_eos_token_id": 3,
        "bad_words_ids": [[7, 8], [9]],
        "begin_suppress_tokens": (6,),
    },
    "drawn": DRAWN,
    "drawn without ends": DRAWN | {"ignore_eos": True},
    "drawn by top_k and top_p": DRAWN | {"top_k": 20, "top_p": 0.9},
    "drawn by min_p": DRAWN | {"min_p": 0.05, "repetition_penalty": 1.2},
    "drawn by typical_p": DRAWN | {"typical_p": 0.8},
    "drawn by top_h": DRAWN | {"top_h": 0.6},
    "drawn by cutoffs": DRAWN | {"epsilon_cutoff": 1e-3, "eta_cutoff": 2e-3},
    "drawn with biases": DRAWN | {"logit_bias": LIKELY_END, "sequence_bias": {(1, 2): 3.0, (5,): -4.0}},
    "several": DRAWN | {"num_return_sequences": 3},
    "the best of several": DRAWN | {"best_of": 4, "num_return_sequences": 2, "logit_bias": LIKELY_END},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "beams that end": {"num_beams": 4, "logit_bias": LIKELY_END, "early_stopping": True, "length_penalty": 0.5},
    "beams without repetitions": {"num_beams": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
    "drawn beams": DRAWN | {"num_beams": 3, "top_k": 30},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "together": {"max_batch_size": 32},
    "one at a time": {"max_batch_size": 1},
    "three at a time": {"max_batch_size": 3},
    "in small chunks": {"max_batch_size": 32, "max_step_tokens": 37},
    "token by token": {"max_batch_size": 32, "max_step_tokens": 1},
    "static": {"shapes": "static"},
    "static, in chunks, warmed up": {"shapes": "static", "max_batch_size": 5, "max_step_tokens": 100, "warmup": True},
    "bucket 16": {"shapes": "bucket", "bucket": 16, "max_step_tokens": 70},
    "bucket 100": {"shapes": "bucket", "bucket": 100, "max_batch_size": 32},
    "preempted": {"max_batch_size": 32, "cache_positions": 28 * 64},
    "preempted, in buckets": {"max_batch_size": 32, "cache_positions": 28 * 64, "shapes": "bucket", "bucket": 64},
}
FAST = [name for name in LAYOUTS if name != "token by token"]
Texts = dict[int, tuple[list[int], str]]  # of a request, by choice: its tokens, and why it ended


@dataclass
class Asked:
    """A prompt and its options."""

    name: str
    prompt: list[int]
    params: SamplingParams
    texts: Texts = field(default_factory=dict)


def mix(seed: int, vocabulary: int) -> list[Asked]:
    """Random requests, of each way to generate one at least."""
    chosen = random.Random(seed)
    names = list(STRATEGIES) + chosen.choices(list(STRATEGIES), k=REQUESTS - len(STRATEGIES))
    chosen.shuffle(names)
    asked = []
    for name in names:
        prompt = [
            chosen.randrange(4, vocabulary) for _ in range(chosen.choice((1, 2, 63, 64, 65, LONGEST, 0, 0, 0, 0)))
        ]
        prompt = prompt or [chosen.randrange(4, vocabulary) for _ in range(chosen.randint(1, LONGEST))]
        numbers = {"max_new_tokens": chosen.randint(3, MOST_NEW), "seed": chosen.randrange(2**64)}
        options = STRATEGIES[name] | numbers
        if "min_length" in options:  # given without the prompt
            options["min_length"] += len(prompt)
        asked.append(Asked(name, prompt, SamplingParams(**options)))
    return asked


def run(engine: Engine, mixed: list[Asked]) -> list[Texts]:
    """What comes of all of them, queued at once."""
    strategies = [build_strategy(asked.prompt, asked.params, ENDS) for asked in mixed]
    requests = [Request(strategy) for strategy in strategies]
    texts: dict[Request, Texts] = {request: {} for request in requests}
    for request in requests:
        engine.add(request)
    for _ in range(20_000):
        if engine.idle:
            break
        for update in engine.step():
            assert update.error is None, update.error
            ids, _ = texts[update.request].get(update.said.choice, ([], ""))
            tokens = [*ids, *(token.id for token in update.said.tokens)]
            texts[update.request][update.said.choice] = (tokens, update.said.finish or "")
    assert engine.idle
    pool = engine.scheduler.pool
    assert pool.free == list(range(pool.size))
    return [texts[request] for request in requests]


def alone(decoder: Decoder, mixed: list[Asked]) -> list[Texts]:
    """Each by itself, in an engine that pads and cuts nothing."""
    engine = Engine(decoder, max_seq_len=CONTEXT, max_batch_size=4)
    return [run(engine, [asked])[0] for asked in mixed]


def expect_alone(decoder: Decoder, mixed: list[Asked], layout: dict[str, Any], order: random.Random) -> Engine:
    """The layout changes no token of any request that fits it."""
    options = EngineOptions(**layout)
    engine = start_engine(decoder, options, max_seq_len=CONTEXT)
    fitting = [asked for asked in mixed if asked.params.sequences <= options.max_batch_size]
    order.shuffle(fitting)
    for asked, texts in zip(fitting, run(engine, fitting), strict=True):
        assert texts == asked.texts, f"{asked.name} behind {len(asked.prompt)} tokens, {layout}"
    return engine


@pytest.fixture(scope="module")
def decoder(bloom: Tiny) -> Decoder:
    return load(bloom.path)


@pytest.fixture(scope="module")
def first(decoder: Decoder) -> list[Asked]:
    """A mix, and what each of its requests gives alone."""
    mixed = mix(0, decoder.config.vocab_size)
    for asked, texts in zip(mixed, alone(decoder, mixed), strict=True):
        asked.texts = texts
    return mixed


def test_the_mix_has_every_strategy_and_moves(first: list[Asked]) -> None:
    """Requests that all said the same, or ended at once, would hide mistakes."""
    assert {asked.name for asked in first} == set(STRATEGIES)
    said = [tuple(ids) for asked in first for ids, _ in asked.texts.values()]
    assert len(set(said)) > 0.9 * len(said)
    assert sum(len(ids) > 2 for ids in said) > 0.8 * len(said)
    assert {finish for asked in first for _, finish in asked.texts.values()} == {"stop", "length"}


@pytest.mark.parametrize("name", FAST)
def test_alone_equals_every_layout(decoder: Decoder, first: list[Asked], name: str) -> None:
    engine = expect_alone(decoder, first, LAYOUTS[name], random.Random(1))
    assert ("preempted" in name) == (engine.scheduler.preempted > 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_alone_equals_every_layout_for_many_seeds(tiny: Any, seed: int) -> None:
    shapes = ("bloom-6-heads", "bloom-7-heads", "mistral-window", "mixtral-2-of-4", "falcon-40b-like", "phi-partial")
    decoder = load(tiny(shapes[seed % len(shapes)]).path)
    mixed = mix(seed, decoder.config.vocab_size)
    for asked, texts in zip(mixed, alone(decoder, mixed), strict=True):
        asked.texts = texts
    for place, (name, layout) in enumerate(LAYOUTS.items()):
        engine = expect_alone(decoder, mixed, layout, random.Random(100 * seed + place))
        assert ("preempted" in name) == (engine.scheduler.preempted > 0)


def test_padding_that_is_read_is_seen(decoder: Decoder, first: list[Asked], monkeypatch: pytest.MonkeyPatch) -> None:
    """The test would see padding that leaks: here the last position of every row is that of its padding."""

    def leaking(batch: Any, spans: Any) -> list[int]:
        ends, end = [], 0
        for work, span in zip(batch, spans, strict=True):
            end += span.length + span.padding
            ends += range(end - work.row.wanted, end)
        return ends

    monkeypatch.setattr(runner, "_wanted", leaking)
    with pytest.raises(AssertionError, match="behind"):
        expect_alone(decoder, first, LAYOUTS["bucket 100"], random.Random(1))


def test_a_poisoned_scratch_block_reaches_nobody(decoder: Decoder, first: list[Asked]) -> None:
    """What padding writes is read by padding alone."""
    engine = start_engine(decoder, EngineOptions(shapes="static", max_batch_size=8), max_seq_len=CONTEXT)
    cache = engine.runner.cache
    assert cache.scratch == cache.keys.numbers.shape[1] - 1 == engine.scheduler.pool.size
    inner = engine.runner.run

    def poisoned(batch: Any) -> Any:
        cache.keys.numbers[:, cache.scratch], cache.values.numbers[:, cache.scratch] = torch.nan, torch.nan
        return inner(batch)

    engine.runner.run = poisoned  # type: ignore[method-assign]
    some = first[:8]
    assert run(engine, some) == [asked.texts for asked in some]
