"""Rows in a ragged batch, prompts in chunks, blocks in any order: nobody sees anybody else."""

import random

import pytest
import torch

from bloomery.model import cache as kv
from bloomery.model.cache import KVCache
from drive import Row, alone, assert_parity, blocks_for, chunked, greedy, load, new_cache, one_row, step
from tiny import GREEDY_STEPS, PROMPT_LENGTHS, Tiny


def scattered(lengths: list[int], seed: int = 0) -> tuple[int, list[Row]]:
    """Rows for so many tokens each, whose blocks lie mixed and backwards in a pool with unused ones between."""
    needed = [blocks_for(length) for length in lengths]
    pool = 2 * sum(needed) + 1
    ids = random.Random(seed).sample(range(pool), sum(needed))
    rows = [Row(tuple(ids.pop() for _ in range(count))) for count in needed]
    return pool, rows


def clear(cache: KVCache, rows: list[Row]) -> None:
    for row in rows:
        cache.clear(list(row.blocks))


def test_batched_equals_alone(checkpoint: Tiny) -> None:
    decoder = load(checkpoint.path)
    prompts = [checkpoint.prompt(length) for length in PROMPT_LENGTHS]
    pool, rows = scattered([len(prompt) + GREEDY_STEPS for prompt in prompts])
    cache = new_cache(decoder, pool)
    clear(cache, rows)
    tokens, logits = greedy(decoder, cache, rows, prompts, GREEDY_STEPS)
    for index, prompt in enumerate(prompts):
        assert tokens[index] == checkpoint.greedy(prompt)
        assert_parity(logits[index], checkpoint.logits(prompt + tokens[index])[len(prompt) - 1 : -1])
        single_tokens, single_logits = alone(decoder, prompt, 8)
        assert tokens[index][:8] == single_tokens
        assert_parity(logits[index][:8], single_logits)


def test_prompts_and_single_tokens_share_a_step(either: Tiny) -> None:
    """What continuous batching does: one row decodes while others bring a chunk or a whole prompt."""
    decoder = load(either.path)
    texts = [either.prompt(length) for length in (71, 100, 3, 100)]
    pool, rows = scattered([len(text) for text in texts])
    cache = new_cache(decoder, pool)
    clear(cache, rows)
    step(decoder, cache, rows[:2], [texts[0][:70], texts[1][:50]])
    news = [texts[0][70:], texts[1][50:], texts[2], texts[3]]
    for text, new, logits in zip(texts, news, step(decoder, cache, rows, news), strict=True):
        assert_parity(logits, either.logits(text)[-len(new) :])


@pytest.mark.parametrize("chunk", [1, 7, 64, 65, 128])
def test_chunked_prefill_equals_one_prefill(checkpoint: Tiny, chunk: int) -> None:
    decoder = load(checkpoint.path)
    ids = checkpoint.prompt(200)
    cache, row = one_row(decoder, len(ids))
    whole = step(decoder, cache, [row], [ids])[0]
    cache, row = one_row(decoder, len(ids))
    pieces = chunked(decoder, cache, row, ids, chunk)
    assert_parity(pieces, whole)
    assert_parity(pieces, checkpoint.logits(ids))


@pytest.mark.parametrize("table", [(3, 2, 1, 0), (0, 5, 2, 7), (6, 7, 0, 1), (2, 3, 4, 5), (4, 5, 6, 7, 0, 1)])
def test_any_block_table_gives_the_same_logits(either: Tiny, table: tuple[int, ...]) -> None:
    decoder = load(either.path)
    ids = either.prompt(250)
    cache = new_cache(decoder, 8)
    row = Row(table)
    clear(cache, [row])
    assert_parity(chunked(decoder, cache, row, ids, 100), either.logits(ids))


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 1e30])
def test_blocks_of_others_never_leak(either: Tiny, garbage: float) -> None:
    decoder = load(either.path)
    prompts = [either.prompt(length) for length in (5, 70, 130)]
    pool, rows = scattered([len(prompt) + 1 for prompt in prompts])
    cache = new_cache(decoder, pool)
    cache.keys.numbers.fill_(garbage)
    cache.values.numbers.fill_(garbage)
    clear(cache, rows)
    first = step(decoder, cache, rows, prompts)
    # Now the longest row itself goes bad: the others, in the same batch, must not notice.
    bad = list(rows[2].blocks)
    cache.keys.numbers[:, bad] = garbage
    cache.values.numbers[:, bad] = garbage
    second = step(decoder, cache, rows, [[7], [7], [7]])
    for index, prompt in enumerate(prompts[:2]):
        assert_parity(first[index], either.logits(prompt))
        assert_parity(second[index], either.logits([*prompt, 7])[-1:])
    assert not second[2].isfinite().all() or garbage == 1e30


def test_cleared_block_remembers_nothing(either: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """For PyTorch's attention: our own does not read what no token of the text has written."""
    monkeypatch.setattr(kv, "attends_natively", lambda x: False)
    decoder = load(either.path)
    ids = either.prompt(70)
    cache = new_cache(decoder, 2)
    dirty = Row((1, 0))
    assert not step(decoder, cache, [dirty], [ids])[0].isfinite().all()  # what the pool holds does matter
    fresh = Row((1, 0))
    clear(cache, [fresh])
    assert_parity(step(decoder, cache, [fresh], [ids])[0], either.logits(ids))
    reused = Row((0, 1))
    clear(cache, [reused])
    other = either.prompt(70, seed=1)
    assert_parity(step(decoder, cache, [reused], [other])[0], either.logits(other))


def test_clear_leaves_other_blocks_alone(either: Tiny) -> None:
    decoder = load(either.path)
    cache = new_cache(decoder, 4)
    cache.keys.numbers.fill_(3)
    cache.values.numbers.fill_(4)
    cache.clear([])
    cache.clear([2, 0])
    for pool, was in ((cache.keys.numbers, 3), (cache.values.numbers, 4)):
        assert (pool[:, [0, 2]] == 0).all()
        assert (pool[:, [1, 3]] == was).all()
