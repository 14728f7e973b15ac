"""Learning rate, batch and sequence length are the functions that their names promise, of how far the run is alone."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from bloomery.errors import UsageError
from bloomery.train.pace import Pace, Reached
from bloomery.train.recipe.pace_options import Batch, Optim, Schedule
from bloomery.train.recipe.run_options import ModelShape
from training import recipe

OUT = Path("out")
ONE = Optim(lr=1.0)
SAMPLES = Schedule(unit="samples", warmup=100)
THEIRS = {
    "cosine": lambda o: get_cosine_schedule_with_warmup(o, 10, 100),
    "linear": lambda o: get_linear_schedule_with_warmup(o, 10, 100),
    "constant": lambda o: get_constant_schedule_with_warmup(o, 10),
    "wsd": lambda o: get_wsd_schedule(o, 10, 20, num_stable_steps=70, decay_type="linear"),
}


def pace(seq_len: int = 64, **sections: object) -> Pace:
    return Pace(recipe(OUT, optim=ONE, model=ModelShape(seq_len=seq_len), **sections), seq_len)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", THEIRS)
def test_a_schedule_is_that_of_transformers_one_step_on(kind: str) -> None:
    """Theirs gives the first step a rate of 0 and never takes the last one; ours begins at their second."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = THEIRS[kind](optimizer)
    lowest = {} if kind == "constant" else {"min_lr_ratio": 0.0}
    decay = 20 if kind == "wsd" else None
    ours = pace(schedule=Schedule(kind=kind, warmup=10, decay=decay, **lowest), steps=100)  # type: ignore[arg-type]
    for step in range(1, 101):
        optimizer.step()
        theirs.step()
        assert ours.learning_rate(Reached(step)) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)


@pytest.mark.parametrize(("unit", "factor"), [("samples", 8), ("tokens", 8 * 64)])
@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_units_are_one_schedule(kind: str, unit: str, factor: int) -> None:
    in_steps = pace(schedule=Schedule(kind=kind, warmup=10), steps=100)  # type: ignore[arg-type]
    other = pace(schedule=Schedule(kind=kind, warmup=10 * factor, unit=unit), run={unit: 100 * factor})  # type: ignore[arg-type]
    for step in range(1, 101):
        reached = Reached(step, 8 * step, 8 * 64 * step)
        assert other.learning_rate(reached) == pytest.approx(in_steps.learning_rate(reached), rel=1e-12)


def test_the_lowest_rate_is_kept_after_the_decay() -> None:
    ours = pace(schedule=Schedule(warmup=0, decay=50, min_lr_ratio=0.25), steps=100)
    assert [ours.learning_rate(Reached(step)) for step in (50, 51, 100)] == [0.25, 0.25, 0.25]
    rates = [ours.learning_rate(Reached(step)) for step in range(1, 51)]
    assert all(a > b for a, b in pairwise(rates))


def megatron_batch(consumed: int, start: int, increment: int, samples: int, size: int) -> int:
    """megatron/microbatches.py, RampupBatchsizeNumMicroBatches.update, in its words."""
    per_increment = samples / ((size - start) // increment)
    return size if consumed > samples else min(size, start + int(consumed / per_increment) * increment)


def test_the_batch_grows_as_megatron_lets_it() -> None:
    ours = pace(
        batch=Batch(size=64, ramp_start=16, ramp_increment=8, ramp_samples=1200),
        run={"samples": 5000},
        schedule=SAMPLES,
    )
    reached, sizes = Reached(), []
    while not ours.done(reached):
        count = ours.sequences(reached)
        assert count == min(megatron_batch(reached.samples, 16, 8, 1200, 64), 5000 - reached.samples)
        sizes.append(count)
        reached = reached.after(count, count * 64)
    assert sorted(set(sizes[:-1])) == [16, 24, 32, 40, 48, 56, 64]
    assert reached.samples == 5000


def test_sequences_grow_by_increments_to_their_full_length() -> None:
    ours = pace(batch=Batch(short_start=16, short_increment=8, short_steps=10), steps=20, schedule=Schedule(warmup=2))
    lengths = [ours.seq_len(Reached(step)) for step in range(20)]
    assert lengths[0] == 16
    assert lengths[10:] == [64] * 10
    assert all(b - a in (0, 8) for a, b in pairwise(lengths))
    assert all(length % 8 == 0 for length in lengths)


@pytest.mark.parametrize(("unit", "count", "steps"), [("steps", 7, 7), ("samples", 50, 7), ("tokens", 3500, 7)])
def test_a_run_is_as_long_as_was_said(unit: str, count: int, steps: int) -> None:
    ours, reached = pace(run={unit: count}, schedule=Schedule(warmup=1)), Reached()
    while not ours.done(reached):
        sequences = ours.sequences(reached)
        reached = reached.after(sequences, sequences * 64)
    assert reached.steps == steps
    assert ours.run.samples is None or reached.samples == 50


REFUSED = [
    (
        {"run": {"tokens": 10**6}, "batch": Batch(ramp_start=4, ramp_increment=4, ramp_samples=9)},
        "the run's length in steps",
    ),
    ({"run": {"samples": 100}, "batch": Batch(size=10), "schedule": Schedule(warmup=11)}, "schedule.warmup 11 is more"),
    ({"steps": 5, "run": {"samples": 100}}, "give the run's length once"),
]


@pytest.mark.parametrize(("sections", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_length_that_cannot_be_known_or_met_is_refused(sections: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        pace(**sections)


def test_a_constant_rate_needs_no_length() -> None:
    batch = Batch(ramp_start=4, ramp_increment=4, ramp_samples=9)
    ours = pace(run={"tokens": 10**6}, batch=batch, schedule=Schedule(kind="constant", warmup=2))
    assert [ours.learning_rate(Reached(step)) for step in (1, 2, 9000)] == [0.5, 1.0, 1.0]
