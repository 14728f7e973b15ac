"""Bytes are counted by hand, caches are read as the system writes them, and a measurement says what it was of."""

from pathlib import Path

import pytest

from bloomery import LLM
from bloomery.bench.machine import caches
from bloomery.bench.measure import Asked, measure
from bloomery.bench.report import memory_values, seconds_a_token_as_text
from bloomery.bench.spread import Spread
from conftest import Tiny
from talker import build_talker

STEP = Spread(*[0.5] * 5, 7)


def asked(llm: LLM, **numbers: int) -> Asked:
    given = {"requests": 2, "prompt_length": 60, "new_tokens": 8, "rounds": 2}
    return Asked(**given | numbers, vocab_size=llm.decoder.config.vocab_size)


def test_a_step_reads_all_weights_but_the_table_and_the_blocks_of_every_text(either: Tiny) -> None:
    llm = LLM(either.path, max_batch_size=2)
    config, values = llm.decoder.config, memory_values(llm, asked(llm), STEP)
    read = sum(p.nbytes for p in llm.decoder.parameters())
    if not config.tied_head:
        read -= llm.decoder.embed.tokens.weight.nbytes
    if llm.decoder.embed.positions is not None:
        read -= llm.decoder.embed.positions.weight.nbytes
    assert values["weights (bytes a step)"] == read
    # Steps at 61 to 67 positions: four within one block of 64, three that reach into a second.
    block = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 64 * 4
    assert values["KV (bytes a step)"] == 2 * block * (4 * 1 + 3 * 2) // 7
    assert values["GB/s"] == pytest.approx((read + values["KV (bytes a step)"]) / 0.5 / 1e9)
    assert values["share"] == pytest.approx(values["GB/s"] / values["read bandwidth (GB/s)"])


def test_keys_and_values_in_8_bits_are_read_with_their_scales(bloom: Tiny) -> None:
    llm = LLM(bloom.path, max_batch_size=2, cache_dtype="int8")
    config, values = llm.decoder.config, memory_values(llm, asked(llm), STEP)
    block = 2 * config.num_layers * config.num_kv_heads * (config.head_dim + 4) * 64
    assert values["KV (bytes a step)"] == 2 * block * (4 * 1 + 3 * 2) // 7


def test_only_texts_that_run_at_once_are_read(bloom: Tiny) -> None:
    llm = LLM(bloom.path, max_batch_size=1)
    one, two = (memory_values(llm, asked(llm, requests=n), STEP)["KV (bytes a step)"] for n in (1, 2))
    assert one == two > 0


def test_every_round_does_the_same_and_the_first_is_not_among_them(bloom: Tiny) -> None:
    llm = LLM(bloom.path, max_batch_size=2)
    found = measure(llm, asked(llm, rounds=3))
    assert found.tokens == 3 * 2 * 8
    assert found.first_token.count == found.request.count == 6
    assert found.per_token is not None
    assert found.per_token.count == 3 * 2 * 7
    assert len({one.completions[0].token_ids for one in found.rounds}) == 1
    assert found.tokens_per_second.count == 3


def test_one_token_has_no_time_between_two(bloom: Tiny) -> None:
    llm = LLM(bloom.path, max_batch_size=2)
    found = measure(llm, asked(llm, new_tokens=1))
    assert found.per_token is None
    assert "GB/s" not in memory_values(llm, asked(llm, new_tokens=1), None)


def test_text_is_timed_where_there_is_a_tokenizer(tmp_path: Path) -> None:
    llm = LLM(build_talker(tmp_path / "talker"))
    done = llm.generate("the cat")
    assert 0 < (seconds_a_token_as_text(llm.tokenizer, done) or 0) < 0.1
    assert seconds_a_token_as_text(None, done) is None


def test_caches_are_what_the_system_says(tmp_path: Path) -> None:
    for index, (level, kind, size) in enumerate([("1", "Data", "32K"), ("2", "Unified", "1024K")]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(text + "\n")
    (tmp_path / "index2").mkdir()  # which says nothing
    assert caches(tmp_path) == {"L1 data": "32K", "L2 unified": "1024K"}
    assert caches(tmp_path / "nowhere") == {}
