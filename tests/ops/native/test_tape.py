"""A tape plays what was called, with what its tensors hold by then, and nothing else can be put on it."""

import pytest
import torch

from bloomery.ops import native
from bloomery.ops.activation import activate, add
from bloomery.ops.linear import linear
from bloomery.ops.native.calls import WRITTEN
from bloomery.ops.native.tape import Arena, NotNative, Tape

pytestmark = pytest.mark.skipif(native.library() is None, reason="the library was not built")


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def test_a_tape_computes_again():
    x, weight = torch.randn(3, 40), torch.randn(50, 40)
    tape = Tape(lambda: add(activate(linear(x, weight, None), "gelu"), linear(x, weight, None)), Arena())
    for _ in range(3):
        once = linear(x, weight, None)
        assert torch.equal(tape.result, add(activate(once, "gelu"), once))
        x.copy_(torch.randn(3, 40))
        tape.play()
    assert WRITTEN.get() is None


def test_tapes_of_one_arena_take_turns():
    arena, x, weight = Arena(), torch.randn(3, 40), torch.randn(50, 40)
    tapes = [Tape(lambda kind=kind: activate(linear(x, weight, None), kind), arena) for kind in ("relu", "silu")]
    assert tapes[0].result.data_ptr() == tapes[1].result.data_ptr()
    for tape, kind in (*zip(tapes, ("relu", "silu"), strict=True), (tapes[0], "relu")):
        assert torch.equal(tape.play(), activate(linear(x, weight, None), kind))


def test_an_arena_grows_and_keeps_what_it_gave():
    arena = Arena()
    given = [arena.take((size,), torch.float32).fill_(size) for size in (10, 3_000_000, 5, 0, 700_000, 700_000)]
    for numbers in given:
        assert (numbers == len(numbers)).all()
        assert numbers.data_ptr() % 64 == 0 or not len(numbers)
        assert arena.has(numbers) or not len(numbers)
    assert not arena.has(torch.ones(3))
    arena.rewind()
    assert arena.take((10,), torch.bfloat16).data_ptr() == given[0].data_ptr()


def test_an_arena_takes_back_what_nobody_has():
    arena = Arena()
    first, other = arena.take((5, 4), torch.float32), arena.take((5, 4), torch.float32)
    place, view = first.data_ptr(), first[2:].flatten()
    del first
    assert arena.take((20,), torch.float32).data_ptr() != place, "a view of it is there"
    del view
    assert arena.take((40,), torch.bfloat16).data_ptr() == place
    arena.rewind()
    first = arena.take((20,), torch.float32)
    second = arena.take((20,), torch.float32)
    assert second.data_ptr() == other.data_ptr()
    del other  # of the tape before: not to be given now
    assert arena.take((20,), torch.float32).data_ptr() not in (first.data_ptr(), second.data_ptr())


def test_a_tape_needs_no_more_memory_for_more_of_the_same():
    x, weight = torch.randn(3, 40), torch.randn(40, 40)

    def layers(count: int) -> torch.Tensor:
        y = x
        for _ in range(count):
            y = add(y, activate(linear(y, weight, None), "gelu"))
        return y

    used = []
    for count in (4, 40):
        arena = Arena()
        tape = Tape(lambda count=count: layers(count), arena)
        assert torch.equal(tape.play(), layers(count))
        used.append(arena._used)
    assert used[0] == used[1]


def test_tensors_live_as_long_as_their_tape():
    x, weights = torch.ones(1, 4), [torch.full((1000, 4), 2.0)]
    tape = Tape(lambda: linear(x, weights[0], None), Arena())
    weights.clear()
    others = [torch.full((1000, 4), 3.0) for _ in range(50)]
    assert (tape.play() == 8).all()
    assert len(others) == 50


@pytest.mark.parametrize("what", [torch.exp, lambda x: x.T.contiguous(), lambda x: x.T.flatten(), lambda x: x + 1])
def test_what_is_not_ours_is_refused(what):
    x = torch.randn(3, 40)
    with pytest.raises(NotNative):
        Tape(lambda: what(x), Arena())
    assert WRITTEN.get() is None


def test_views_are_not_computed():
    x = torch.randn(3, 40)
    tape = Tape(lambda: add(x.unflatten(1, (5, 8)).flatten(0, 1)[5:10].flatten(), x[2:].squeeze(0)), Arena())
    x.copy_(torch.randn(3, 40))
    assert torch.equal(tape.play(), x[1] + x[2])
