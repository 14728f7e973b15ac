"""Speeds follow from the clock's readings: waiting for data is part of a step, what is no step is not."""

from contextlib import suppress

import pytest

from bloomery.model.config import DecoderConfig
from bloomery.train.report.flops import StepCost
from bloomery.train.report.meter import Meter
from bloomery.train.report.peak import Peak

COST = StepCost(
    DecoderConfig(
        vocab_size=300,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=4,
        head_dim=8,
        ffn_size=96,
        max_seq_len=64,
        positions="alibi",
    ),
    recompute=True,
)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_figures_are_means_over_the_steps_since_the_last_ones(clock: Clock) -> None:
    meter = Meter(COST, Peak(1e-3, "given"), clock=clock)
    for sequences, seconds in ((2, 1.0), (4, 3.0)):
        clock.now += seconds
        meter.stepped(sequences, 16)
    operations = COST.model(2, 16) + COST.model(4, 16)
    computed = COST.hardware(2, 16) + COST.hardware(4, 16)
    assert meter.figures() == pytest.approx(
        {
            "batch_size": 4,
            "seq_len": 16,
            "ms_per_step": 2000,
            "data_wait_ms": 0,
            "tokens_per_s": 6 * 16 / 4,
            "samples_per_s": 6 / 4,
            "tflops": operations / 4e12,
            "mfu": operations / 4e9,
            "hfu": computed / 4e9,
            "seconds": 4,
        }
    )
    clock.now += 0.5
    meter.stepped(1, 8)
    again = meter.figures()
    assert (again["ms_per_step"], again["tokens_per_s"], again["seconds"]) == (500, 16, 4.5)


def test_waiting_for_data_is_part_of_a_step_and_pauses_are_not(clock: Clock) -> None:
    meter = Meter(COST, Peak(1.0, "given"), seconds=1000, clock=clock)
    with meter.waiting():
        clock.now += 1
    clock.now += 2
    with meter.paused():
        clock.now += 50
    meter.stepped(1, 8)
    with meter.paused():
        clock.now += 70
    clock.now += 1
    meter.stepped(1, 8)
    figures = meter.figures()
    assert (figures["ms_per_step"], figures["data_wait_ms"], figures["seconds"]) == (2000, 500, 1004)


def test_a_pause_that_fails_is_no_part_of_a_step_either(clock: Clock) -> None:
    meter = Meter(COST, Peak(1.0, "given"), clock=clock)
    with suppress(KeyError), meter.paused():
        clock.now += 50
        raise KeyError
    clock.now += 1
    meter.stepped(1, 8)
    assert meter.figures()["seconds"] == 1


def test_no_step_has_no_speed() -> None:
    with pytest.raises(ValueError, match="no step"):
        Meter(COST, Peak(1.0, "given")).figures()


def test_mfu_is_said_with_its_peak_and_where_that_comes_from() -> None:
    assert Meter(COST, Peak(989.5, "table: NVIDIA H200")).explain().endswith("989.5 TFLOP/s (table: NVIDIA H200)")
