"""What steps are padded to: few shapes, which warming up has run, and no number that padding could change."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bloomery import LLM, SamplingParams, UsageError
from bloomery.engine.engine import Engine
from bloomery.engine.options import EngineOptions
from bloomery.engine.request import Request
from bloomery.engine.shapes import HEAD_AT_ONCE, Shapes, choose_shapes
from bloomery.engine.start import start_engine
from bloomery.engine.strategies.build import build_strategy
from bloomery.engine.strategies.scoring import Forward, Scoring
from bloomery.model import cache
from conftest import Tiny
from drive import TOLERANCE, load
from tiny import SHAPES

PADDED: list[dict[str, Any]] = [
    {"shapes": "static"},
    {"shapes": "static", "max_step_tokens": 30},
    {"shapes": "bucket", "bucket": 7},
    {"shapes": "bucket", "bucket": 64, "max_step_tokens": 100},
]
numbers = st.integers(1, 600)


def run(engine: Engine, *strategies: Any) -> None:
    for strategy in strategies:
        engine.add(Request(strategy))
    while not engine.idle:
        for update in engine.step():
            assert update.error is None


@pytest.mark.parametrize("shape", [shape.name for shape in SHAPES])
def test_padded_logits_of_every_family_are_those_of_transformers(tiny: Any, shape: str) -> None:
    """To the last position that a model has: padding behind it has none of its own."""
    checkpoint: Tiny = tiny(shape)
    decoder = load(checkpoint.path)
    context = decoder.config.max_seq_len
    for length, options in zip((1, context, context, 100), PADDED, strict=True):
        ids = checkpoint.prompt(length)
        engine = start_engine(decoder, EngineOptions(max_batch_size=2, **options), max_seq_len=context)
        one, other = Forward(ids, head=True), Forward(ids[: 1 + length // 2], head=True)
        run(engine, one, other)
        expected = checkpoint.logits(ids)
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        for strategy in (one, other):
            got = torch.cat(strategy.collected)
            assert (got - expected[: len(got)]).abs().max() <= allowed


@given(numbers, numbers, numbers, st.integers(1, 64), st.sampled_from(["static", "bucket", "dynamic"]), st.data())
def test_what_a_step_is_padded_to_holds_what_is_in_it(
    batch: int, step: int, context: int, bucket: int, kind: Any, data: st.DataObject
) -> None:
    bucket = min(bucket, step, context)
    shapes = choose_shapes(kind, bucket if kind == "bucket" else None, batch=batch, step=step, context=context)
    rows = data.draw(st.integers(1, min(batch, step)))
    assert rows <= shapes.singles(rows, alone=True) <= shapes.singles(rows, alone=False) <= min(batch, step)
    assert shapes.singles(0, alone=False) == 0
    tokens = data.draw(st.integers(1, min(step, context)))
    assert tokens <= shapes.tokens(tokens) <= shapes.cost(tokens)
    assert shapes.tokens(shapes.tokens(tokens)) == shapes.tokens(tokens)  # a full bucket gets no other beside it
    assert shapes.wanted(tokens) >= tokens
    assert min(tokens, HEAD_AT_ONCE) <= shapes.logits(min(tokens, HEAD_AT_ONCE)) <= HEAD_AT_ONCE
    positions = data.draw(st.integers(1, context))
    assert shapes.reach(positions) in range(positions, context + 1) or kind == "dynamic"


def test_dynamic_shapes_pad_nothing() -> None:
    shapes = Shapes()
    for count in (1, 2, 63, 1000):
        assert shapes.tokens(count) == shapes.cost(count) == shapes.wanted(count) == count
        assert shapes.singles(count, alone=True) == count
        assert shapes.reach(count) == 0


@pytest.fixture
def without_our_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own reads what there is, whatever the shapes; PyTorch's attention has some."""
    monkeypatch.setattr(cache, "attends_natively", lambda x: False)


class Seen:
    """The shapes of an engine's steps."""

    def __init__(self, engine: Engine) -> None:
        self.tokens: set[int] = set()
        self.wanted: set[int] = set()
        self.attended: set[tuple[int, int]] = set()
        self.logits: set[int] = set()
        engine.runner.decoder.register_forward_pre_hook(self.note)
        engine.runner.decoder.head.register_forward_pre_hook(lambda _, given: self.logits.add(len(given[0])))

    def note(self, _: Any, given: Any) -> None:
        ids, positions, attend, wanted = given
        assert len(ids) == len(positions)
        self.tokens.add(len(ids))
        self.wanted.add(len(wanted))
        self.attended |= {tuple(group.bias.shape[2:]) for group in attend.groups}

    def forget(self) -> "Seen":
        before = Seen.__new__(Seen)
        before.__dict__ = {name: set(value) for name, value in self.__dict__.items()}
        for value in self.__dict__.values():
            value.clear()
        return before


def requests(count: int) -> list[Any]:
    """Texts of many lengths, and scores, which want every position."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 240, (count,), generator=generator).tolist()
    prompts = [torch.randint(4, 700, (length,), generator=generator).tolist() for length in lengths]
    params = [SamplingParams(max_new_tokens=length % 9 + 1, temperature=0.5, seed=length) for length in lengths]
    texts = [build_strategy(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
    return [*texts, *(Scoring(prompt, len(prompt) - 1) for prompt in prompts if 1 < len(prompt) < 100)]


@pytest.mark.usefixtures("without_our_kernel")
@pytest.mark.parametrize("step", [50, 512])
def test_static_steps_have_three_shapes_all_of_which_warming_up_runs(bloom: Tiny, step: int) -> None:
    options = EngineOptions(shapes="static", max_batch_size=5, max_step_tokens=step)
    engine = start_engine(load(bloom.path), options, max_seq_len=256)
    seen, chunk = Seen(engine), min(step, 256)
    engine.warm_up()
    warmed = seen.forget()
    run(engine, *requests(30))
    assert seen.tokens <= warmed.tokens == {5, chunk, 5 + chunk}
    assert seen.wanted <= warmed.wanted == {5, 5 + chunk}
    assert seen.attended - {(1, 64)} <= warmed.attended - {(1, 64)} == {(1, 256), (chunk, 256)}  # 64: nobody's rows
    assert seen.logits <= {5, min(5 + chunk, HEAD_AT_ONCE)}


@pytest.mark.usefixtures("without_our_kernel")
@pytest.mark.parametrize(("bucket", "step"), [(16, 50), (64, 200), (7, 20)])
def test_bucketed_steps_have_shapes_that_warming_up_runs(bloom: Tiny, bucket: int, step: int) -> None:
    options = EngineOptions(shapes="bucket", bucket=bucket, max_batch_size=6, max_step_tokens=step)
    engine = start_engine(load(bloom.path), options, max_seq_len=256)
    seen = Seen(engine)
    engine.warm_up()
    warmed = seen.forget()
    run(engine, *requests(40))
    assert len(warmed.tokens) <= len(engine.runner.shapes.steps())
    assert seen.tokens <= warmed.tokens
    assert {length for length, _ in seen.attended if length > 1} <= set(range(bucket, step + bucket, bucket))


@pytest.mark.usefixtures("without_our_kernel")
def test_dynamic_steps_have_more_shapes_than_either(bloom: Tiny) -> None:
    """What the two tests above count is not the same anyway."""
    engine = start_engine(load(bloom.path), EngineOptions(max_batch_size=5), max_seq_len=256)
    seen = Seen(engine)
    run(engine, *requests(30))
    assert len(seen.tokens) > 12


@pytest.mark.parametrize("kind", ["static", "bucket", "dynamic"])
def test_warming_up_leaves_nothing_behind(bloom: Tiny, kind: Any) -> None:
    decoder = load(bloom.path)
    ids = bloom.prompt(70)
    # Fewer positions than the longest step has tokens.
    options = EngineOptions(shapes=kind, warmup=True, max_batch_size=4, cache_positions=128)
    engine = start_engine(decoder, options, max_seq_len=256)
    engine.runner.cache.keys.numbers.fill_(torch.nan)
    engine.runner.cache.values.numbers.fill_(torch.nan)
    engine.warm_up()
    assert engine.scheduler.pool.free == [0, 1]
    assert engine.decoding.steps == 0
    strategy = build_strategy(ids, SamplingParams(max_new_tokens=8))
    run(engine, strategy)
    assert [token.id for token in strategy.texts[0].continuation.tokens] == bloom.greedy(ids)[:8]


def test_rows_that_are_nobodys_are_not_counted(bloom: Tiny) -> None:
    for kind in ("static", "bucket", "dynamic"):
        llm = LLM(bloom.path, shapes=kind, max_batch_size=8)
        llm.generate([bloom.prompt(n) for n in (5, 9, 80)], SamplingParams(max_new_tokens=9))
        assert 0 < llm.decoding.tokens <= 3 * 8
        assert llm.decoding.tokens <= 3 * llm.decoding.steps


def test_a_bucket_that_nothing_fills_is_refused() -> None:
    for name, step, context in (("max_step_tokens 64", 64, 512), ("max_seq_len 64", 512, 64)):
        with pytest.raises(UsageError, match=f"bucket 65 is more than {name}: lower bucket, raise"):
            choose_shapes("bucket", 65, batch=1, step=step, context=context)
    assert choose_shapes("bucket", None, batch=1, step=64, context=512).bucket == 64
    assert choose_shapes("bucket", None, batch=1, step=512, context=512).bucket == 128
