"""Who runs when: nothing is dropped, order is kept, blocks come back, no prompt stalls what is running."""

import pytest

from bloomery import SamplingParams, UsageError
from bloomery.engine.request import Request
from bloomery.engine.scheduler import Scheduler
from bloomery.engine.strategies.sampling import Sampling
from bloomery.engine.strategies.scoring import Scoring
from bloomery.engine.strategy import Decision, Row, Token


def request(prompt, new=10):
    return Request(Sampling(list(range(prompt)), SamplingParams(max_new_tokens=new)))


def scheduler(blocks=8, max_running=4, max_step_tokens=32):
    return Scheduler(blocks=blocks, block=16, max_running=max_running, max_step_tokens=max_step_tokens)


def decoded(work):
    """Play the engine: every strategy that was given its wanted position emits a token."""
    for piece in work:
        if piece.row.wanted:
            piece.request.strategy.texts[0].continuation.tokens.append(Token(0))


def blocks_of(one):
    return [slot.blocks for slot in one.slots]


def test_a_long_prompt_runs_in_chunks_and_only_the_last_one_wants_logits():
    house = scheduler()
    house.add(request(70))
    pieces = [house.schedule().work[0] for _ in range(3)]
    assert [(p.start, len(p.row.ids), p.row.wanted) for p in pieces] == [(0, 32, 0), (32, 32, 0), (64, 6, 1)]
    assert [token for piece in pieces for token in piece.row.ids] == list(range(70))


def test_scored_positions_are_split_over_chunks_without_loss():
    house = scheduler()
    house.add(Request(Scoring(list(range(71)), scored=50)))
    pieces = [house.schedule().work[0] for _ in range(3)]
    assert [(len(p.row.ids), p.row.wanted) for p in pieces] == [(32, 12), (32, 32), (6, 6)]


def test_a_running_text_gets_its_token_in_every_step_beside_a_long_prompt():
    house = scheduler()
    short, long = request(4), request(60)
    house.add(short)
    decoded(house.schedule().work)
    house.add(long)
    for _ in range(2):
        work = house.schedule().work
        assert work[0].request is short
        assert len(work[0].row.ids) == 1
        assert sum(len(piece.row.ids) for piece in work) <= 32
        decoded(work)


def test_what_does_not_fit_waits_in_order_and_starts_when_blocks_come_back():
    house = scheduler(blocks=3, max_running=4)
    first, second, third = (
        request(30, new=19),
        request(30, new=19),
        request(5, new=5),
    )  # 2, 2, 1 blocks at first
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
    assert house.pool.free == [0, 1, 2]


def test_no_block_has_two_owners():
    house = scheduler(blocks=8, max_running=8)
    requests = [request(10 + 8 * n, new=2) for n in range(5)]
    for one in requests:
        house.add(one)
    while house.waiting or house.running:
        house.schedule()
        held = [block for one in house.running for slot in one.slots for block in slot.blocks]
        assert len(held) == len(set(held))
        assert sorted(held + house.pool.free) == list(range(8))
        house.release(house.running[0])


def test_blocks_are_neighbours_where_they_can_be():
    house = scheduler(blocks=8, max_running=8, max_step_tokens=256)
    small = [request(10, new=2) for _ in range(8)]  # a block each
    for one in small:
        house.add(one)
    decoded(house.schedule().work)
    for one in (small[1], small[4], small[5], small[7]):
        house.release(one)
    house.add(request(20, new=2))
    decoded(house.schedule().work)
    assert blocks_of(house.running[-1]) == [[4, 5]]
    house.add(request(20, new=2))
    decoded(house.schedule().work)
    assert blocks_of(house.running[-1]) == [[1, 7]]  # no neighbours are left: any


def test_a_text_grows_into_the_neighbours_it_wished_for_beside_others_that_grow():
    house = scheduler(blocks=8, max_running=2)
    first, second = request(10, new=40), request(10, new=40)  # 4 blocks each in the end, 1 at first
    house.add(first)
    house.add(second)
    for _ in range(40):
        decoded(house.schedule().work)
    assert blocks_of(first) + blocks_of(second) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert house.preempted == 0


def test_every_block_with_a_new_owner_is_reported_to_be_cleared():
    house = scheduler(max_step_tokens=64)
    one = request(40)
    house.add(one)
    step = house.schedule()
    assert sorted(step.fresh) == sorted(blocks_of(one)[0])
    decoded(step.work)
    assert house.schedule().fresh == []


def test_where_blocks_run_out_the_last_to_come_gives_way_and_runs_all_its_tokens_again():
    house = scheduler(blocks=4, max_running=4)
    first, second = request(20, new=30), request(20, new=30)  # 2 blocks each at first, 4 in the end
    house.add(first)
    house.add(second)
    for _ in range(14):  # 20 + 12 positions fill two blocks
        decoded(house.schedule().work)
    assert house.running == [first]
    assert list(house.waiting) == [second]
    assert second.slots[0].blocks == []
    assert second.slots[0].pending == Row([*range(20), *[0] * 12], wanted=1)
    assert sorted(blocks_of(first)[0] + house.pool.free) == [0, 1, 2, 3]
    house.release(first)
    (work,) = house.schedule().work
    assert (work.request, work.start, len(work.row.ids), work.row.wanted) == (second, 0, 32, 1)


class Forking:
    """After its prompt as many sequences as `keeps[0]` has entries, and so on."""

    def __init__(self, prompt, keeps, seats):
        self.prompt, self.keeps, self.seats, self.count = prompt, list(keeps), seats, 1
        self.begun = False

    positions = 60

    def rows(self):
        rows = [Row([7] if self.begun else list(range(self.prompt)), wanted=1)] * self.count
        self.begun = True
        return rows

    def decide(self):
        keep = self.keeps.pop(0) if self.keeps else None
        self.count = self.count if keep is None else len(keep)
        return Decision(keep=keep)


def played(house, one, steps):
    copies = []
    for _ in range(steps):
        step = house.schedule()
        copies.append(step.copies)
        house.follow(one, one.strategy.decide())
    return copies


def test_forks_share_blocks_and_copy_only_the_half_full_last_one():
    house = scheduler(blocks=12, max_running=4, max_step_tokens=64)
    one = Request(Forking(20, [(0, 0, 0)], seats=3))
    house.add(one)
    copies = played(house, one, 2)
    assert [len(pairs) for pairs in copies] == [0, 2]  # the last of three writes where they all began
    tables = blocks_of(one)
    assert len({table[0] for table in tables}) == 1
    assert len({table[1] for table in tables}) == 3
    assert {pair[0] for pair in copies[1]} <= {table[1] for table in tables}
    assert len(house.pool.free) == 12 - 4


def test_forks_at_the_end_of_a_block_copy_nothing():
    house = scheduler(blocks=12, max_running=4, max_step_tokens=64)
    one = Request(Forking(32, [(0, 0)], seats=2))
    house.add(one)
    assert played(house, one, 3) == [[], [], []]
    assert len(house.pool.free) == 12 - 4


def test_sequences_that_end_give_back_what_nobody_else_holds():
    house = scheduler(blocks=12, max_running=4, max_step_tokens=64)
    one = Request(Forking(20, [(0, 0, 0), (1, 1), (0,)], seats=3))
    house.add(one)
    copies = played(house, one, 4)
    assert [len(pairs) for pairs in copies] == [0, 2, 1, 0]
    assert len(house.pool.free) == 12 - 2
    house.release(one)
    assert house.pool.free == list(range(12))
    assert not any(house.pool.holders)


def test_a_request_of_more_sequences_than_seats_is_refused():
    with pytest.raises(UsageError, match="5 sequences at once does not fit a batch of 4"):
        scheduler().add(Request(Forking(4, [], seats=5)))


def test_what_is_taken_back_is_run_again_in_the_same_place():
    house = scheduler()
    one = request(10)
    house.add(one)
    house.schedule()
    house.follow(one, Decision(back=(3,)))
    (slot,) = one.slots
    assert (slot.length, slot.ids) == (7, list(range(7)))
    one.strategy.texts[0].continuation.tokens.append(Token(9))
    assert house.schedule().work[0].start == 7


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


class Guessing:
    """Wants several tokens in every step, as a text that is guessed."""

    seats, positions = 1, 64

    def rows(self):
        return [Row([1, 2, 3], wanted=3)]


def test_rows_that_take_a_whole_step_take_turns_and_keep_no_single_token_waiting():
    """With static shapes a row of three tokens costs what a prompt does."""
    house = Scheduler(
        blocks=16, block=16, max_running=4, max_step_tokens=32, cost=lambda count: 32 if count > 1 else count
    )
    single, *guessing = request(1), Request(Guessing()), Request(Guessing()), Request(Guessing())
    for one in (*guessing, single):
        house.add(one)
    ran = []
    for _ in range(6):
        work = house.schedule().work
        ran.append([piece.request for piece in work])
        decoded([piece for piece in work if piece.request is single])
        for piece in work:
            piece.request.decided = True
            if piece.request is not single:
                house.follow(piece.request, Decision(back=(3,)))
    assert all(single in step for step in ran[1:])
    assert [sum(one in step for step in ran) for one in guessing] == [2, 2, 2]


class Running:
    """Runs so many tokens in each step, on one of the models."""

    seats, positions = 1, 48

    def __init__(self, count, model):
        self.count, self.model = count, model

    def rows(self):
        return [Row([7] * self.count, wanted=1, model=self.model)]


def test_only_who_has_blocks_of_the_model_that_lacks_them_gives_way():
    """The last to come has none of the draft's, so that there is nothing to gain by it."""
    house = Scheduler(blocks=3, block=16, max_running=4, max_step_tokens=64, models=2)
    growing, holding, last = Request(Running(20, 1)), Request(Running(10, 1)), Request(Running(10, 0))
    for one in (growing, holding, last):
        house.add(one)
    ran = [sorted({piece.request.strategy.model for piece in house.schedule().work}) for _ in range(2)]
    assert ran == [[1], [0]]
    assert [len(slot.blocks) for one in (growing, holding, last) for slot in one.slots] == [2, 1, 1]
    house.schedule()
    assert house.running == [growing, last]
    assert list(house.waiting) == [holding]


def test_a_request_that_waits_for_a_seat_has_not_begun():
    """max_time counts from where it runs."""
    house = scheduler(max_running=1)
    first, second = request(4), request(4)
    house.add(first)
    house.add(second)
    house.schedule()
    assert second.slots == []
    house.release(first)
    house.schedule()
    assert len(second.slots) == 1
