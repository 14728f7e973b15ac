"""One row at a time: the same logits and the same tokens as transformers, in every shape."""

import pytest
import torch

from bloomery.model.cache import CausalAttention
from drive import alone, assert_parity, load, one_row, step, uncached_greedy, uncached_logits
from tiny import GREEDY_STEPS, PROMPT_LENGTHS, Tiny


@pytest.mark.parametrize("length", [*PROMPT_LENGTHS, 256, 300])
def test_prompt_logits_equal_transformers(checkpoint: Tiny, length: int) -> None:
    decoder = load(checkpoint.path)
    ids = checkpoint.prompt(length)
    cache, row = one_row(decoder, length)
    assert_parity(step(decoder, cache, [row], [ids])[0], checkpoint.logits(ids))


@pytest.mark.parametrize("length", PROMPT_LENGTHS)
def test_greedy_tokens_equal_transformers(checkpoint: Tiny, length: int) -> None:
    prompt = checkpoint.prompt(length)
    expected = checkpoint.greedy(prompt)
    tokens, logits = alone(load(checkpoint.path), prompt, GREEDY_STEPS)
    assert tokens == expected
    assert_parity(logits, checkpoint.logits(prompt + expected)[length - 1 : -1])


def test_greedy_tokens_need_no_cache(checkpoint: Tiny) -> None:
    prompt = checkpoint.prompt(12)
    assert uncached_greedy(load(checkpoint.path), prompt, GREEDY_STEPS) == checkpoint.greedy(prompt)


@pytest.mark.parametrize("length", [1, 64, 130])
def test_training_path_equals_cached_path(checkpoint: Tiny, length: int) -> None:
    decoder = load(checkpoint.path)
    batch = [checkpoint.prompt(length, seed) for seed in range(3)]
    trained = uncached_logits(decoder, batch)
    for logits, ids in zip(trained, batch, strict=True):
        cache, row = one_row(decoder, length)
        assert_parity(logits, step(decoder, cache, [row], [ids])[0])
        assert_parity(logits, checkpoint.logits(ids))


def test_last_state_alone_gives_the_same_logits(either: Tiny) -> None:
    decoder = load(either.path)
    ids = torch.tensor(either.prompt(20))
    attend = CausalAttention(1, 20, decoder.attention_rule, decoder.device)
    with torch.inference_mode():
        every = decoder(ids, torch.arange(20), attend)
        wanted = decoder(ids, torch.arange(20), attend, torch.tensor([19, 3]))
    assert torch.equal(wanted, every[[19, 3]])
