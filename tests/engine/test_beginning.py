"""What stands before every request's tokens takes its positions, and nobody else notices."""

import pytest
import torch

from bloomery import SamplingParams, UsageError
from bloomery.engine.engine import Engine
from bloomery.engine.request import Request
from bloomery.engine.scheduler import Scheduler
from bloomery.engine.strategies.sampling import Sampling
from bloomery.engine.strategies.scoring import Forward
from bloomery.model.cache import Beginning, KVCache
from bloomery.model.decoder import Decoder
from bloomery.ops.attention import BLOCK
from drive import load, one_row, step
from tiny import Tiny


def begun(decoder: Decoder, ids: list[int]) -> Beginning:
    """The keys and values of a text, as a cache has them after it has run."""
    cache, row = one_row(decoder, len(ids))
    step(decoder, cache, [row], [ids])
    return Beginning(
        *(pool.transpose(2, 3).flatten(1, 2)[:, : len(ids)] for pool in (cache.keys.numbers, cache.values.numbers))
    )


def forward(engine: Engine, ids: list[int]) -> torch.Tensor:
    strategy = Forward(ids, head=True)
    engine.add(Request(strategy))
    while not engine.idle:
        engine.step()
    return torch.cat(strategy.collected)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_a_text_after_a_beginning_equals_the_rest_of_the_whole_text(either: Tiny, length: int) -> None:
    decoder = load(either.path)
    ids = either.prompt(length + 40)
    engine = Engine(decoder, max_seq_len=256, max_batch_size=2, beginning=begun(decoder, ids[:length]))
    expected = either.logits(ids)[length:]
    assert (forward(engine, ids[length:]) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_every_request_begins_anew_in_blocks_of_others(either: Tiny) -> None:
    decoder = load(either.path)
    ids = either.prompt(70)
    engine = Engine(decoder, max_seq_len=128, max_batch_size=2, max_step_tokens=16, beginning=begun(decoder, ids[:30]))
    engine.runner.cache.keys.numbers.fill_(torch.nan)
    engine.runner.cache.values.numbers.fill_(torch.nan)
    requests = [Request(Forward(ids[30:], head=True)) for _ in range(5)]
    for request in requests:
        engine.add(request)
    while not engine.idle:
        engine.step()
    expected = either.logits(ids)[30:]
    for request in requests:
        got = torch.cat(request.strategy.collected)  # type: ignore[attr-defined]
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_positions_of_the_beginning_are_counted() -> None:
    house = Scheduler(blocks=2, block=16, max_running=1, max_step_tokens=64, first=10)
    request = Request(Sampling(list(range(20)), SamplingParams(max_new_tokens=3)))  # 10 + 20 + 2 = 32 positions
    house.add(request)
    step = house.schedule()
    assert (step.work[0].start, step.work[0].blocks, step.fresh) == (10, (0, 1), [0, 1])
    with pytest.raises(UsageError, match="33 positions"):
        house.add(Request(Sampling(list(range(20)), SamplingParams(max_new_tokens=4))))


def test_a_beginning_is_written_where_the_blocks_say(bloom: Tiny) -> None:
    decoder = load(bloom.path)
    config = decoder.config
    cache = KVCache(config, 4, torch.float32, torch.device("cpu"))
    cache.keys.numbers.fill_(0)
    cache.values.numbers.fill_(0)
    shape = (config.num_layers, BLOCK + 3, config.num_kv_heads, config.head_dim)
    beginning = Beginning(torch.randn(shape), torch.randn(shape))
    cache.begin((3, 1), beginning)
    for pool, first in ((cache.keys.numbers, beginning.keys), (cache.values.numbers, beginning.values)):
        assert torch.equal(pool[:, 3], first[:, :BLOCK].transpose(1, 2))
        assert torch.equal(pool[:, 1, :, :3], first[:, BLOCK:].transpose(1, 2))
        assert (pool[:, [0, 2]] == 0).all()
        assert (pool[:, 1, :, 3:] == 0).all()
