"""Who runs when: nothing is dropped, order is kept, blocks come back, no prompt stalls what is running."""

import pytest

from bloomery import SamplingParams, UsageError
from bloomery.engine.request import Request
from bloomery.engine.scheduler import Scheduler
from bloomery.engine.strategy import Sampling, Scoring


def request(prompt, new=10):
    return Request(Sampling(list(range(prompt)), SamplingParams(max_new_tokens=new)))


def scheduler(blocks=8, max_running=4, max_step_tokens=32):
    return Scheduler(blocks=blocks, block=16, max_running=max_running, max_step_tokens=max_step_tokens)


def decoded(work):
    """Play the engine: every strategy that was given its wanted position emits a token."""
    for piece in work:
        if piece.row.wanted:
            piece.request.strategy.generated.append(0)


def test_a_long_prompt_runs_in_chunks_and_only_the_last_one_wants_logits():
    house = scheduler()
    house.add(request(70))
    pieces = [house.schedule()[0][0] for _ in range(3)]
    assert [(p.start, len(p.row.ids), p.row.wanted) for p in pieces] == [(0, 32, 0), (32, 32, 0), (64, 6, 1)]
    assert [token for piece in pieces for token in piece.row.ids] == list(range(70))


def test_scored_positions_are_split_over_chunks_without_loss():
    house = scheduler()
    house.add(Request(Scoring(list(range(71)), scored=50)))
    pieces = [house.schedule()[0][0] for _ in range(3)]
    assert [(len(p.row.ids), p.row.wanted) for p in pieces] == [(32, 12), (32, 32), (6, 6)]


def test_a_running_text_gets_its_token_in_every_step_beside_a_long_prompt():
    house = scheduler()
    short, long = request(4), request(60)
    house.add(short)
    decoded(house.schedule()[0])
    house.add(long)
    for _ in range(2):
        work, _ = house.schedule()
        assert work[0].request is short
        assert len(work[0].row.ids) == 1
        assert sum(len(piece.row.ids) for piece in work) <= 32
        decoded(work)


def test_what_does_not_fit_waits_in_order_and_starts_when_blocks_come_back():
    house = scheduler(blocks=4, max_running=4)
    first, second, third = request(30, new=19), request(30, new=19), request(5, new=5)  # 3, 3 and 1 blocks
    for one in (first, second, third):
        house.add(one)
    house.schedule()
    assert house.running == [first]
    assert list(house.waiting) == [second, third]  # the third would fit, but does not overtake
    house.release(first)
    house.schedule()
    assert house.running == [second, third]
    for one in (second, third):
        house.release(one)
    assert sorted(house.free) == [0, 1, 2, 3]


def test_no_block_has_two_owners():
    house = scheduler(blocks=8, max_running=8)
    requests = [request(10 + 8 * n, new=2) for n in range(5)]
    for one in requests:
        house.add(one)
    while house.waiting or house.running:
        house.schedule()
        held = [block for one in house.running for block in one.slot.blocks]
        assert len(held) == len(set(held))
        assert sorted(held + house.free) == list(range(8))
        house.release(house.running[0])


def test_blocks_are_neighbours_where_they_can_be():
    house = scheduler(blocks=8, max_running=8)
    small = [request(10, new=2) for _ in range(8)]  # a block each
    for one in small:
        house.add(one)
    house.schedule()
    for one in (small[1], small[4], small[5], small[7]):
        house.release(one)
    house.add(request(20, new=2))
    house.schedule()
    assert house.running[-1].slot.blocks == (4, 5)
    house.add(request(20, new=2))
    house.schedule()
    assert house.running[-1].slot.blocks == (1, 7)


def test_every_block_with_a_new_owner_is_reported_to_be_cleared():
    house = scheduler()
    one = request(40)
    house.add(one)
    _, fresh = house.schedule()
    assert sorted(fresh) == sorted(one.slot.blocks)
    assert house.schedule()[1] == []


def test_a_waiting_request_can_be_taken_out():
    house = scheduler(max_running=1)
    first, second = request(4), request(4)
    house.add(first)
    house.add(second)
    house.schedule()
    house.release(second)
    assert not house.waiting
    house.release(second)  # twice is harmless


def test_what_could_never_fit_is_refused_at_once():
    house = scheduler(blocks=2)
    with pytest.raises(UsageError, match="42 positions does not fit a cache of 32"):
        house.add(request(33, new=10))
