"""Blocks that run out, are shared and taken back change no token and no logit."""

from collections.abc import Iterator

import pytest
import torch

from bloomery import SamplingParams
from bloomery.engine.engine import Engine
from bloomery.engine.request import Request
from bloomery.engine.runner import Result
from bloomery.engine.scheduler import Work
from bloomery.engine.strategies.prompt_scores import PromptScores
from bloomery.engine.strategies.sampling import Sampling
from bloomery.engine.strategy import Decision, Row, Token
from bloomery.model.decoder import Decoder
from conftest import Tiny
from drive import TOLERANCE, load, uncached_logits


def run(engine: Engine, requests: list[Request]) -> None:
    for request in requests:
        engine.add(request)
    for _ in range(1000):
        if engine.idle:
            return
        engine.step()
        house = engine.scheduler
        held = sum(len(slot.blocks) for request in house.running for slot in request.slots)
        assert held == sum(house.pool.holders)  # what waits holds nothing
    raise AssertionError("it never ends")


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(4, 90, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_preempted_equals_undisturbed(bloom: Tiny, temperature: float) -> None:
    decoder = load(bloom.path)
    params = SamplingParams(max_new_tokens=40, temperature=temperature, ignore_eos=True, seed=5)
    prompts = [prompt_of(length, length) for length in (60, 50, 100, 3)]

    def tokens(blocks: int | None, seats: int) -> tuple[list[list[Token]], int]:
        engine = Engine(decoder, max_seq_len=192, max_batch_size=seats, max_step_tokens=48, blocks=blocks)
        strategies = [Sampling(prompt, params) for prompt in prompts]
        run(engine, [Request(strategy) for strategy in strategies])
        assert engine.scheduler.pool.free == list(range(engine.scheduler.pool.size))
        return [strategy.texts[0].continuation.tokens for strategy in strategies], engine.scheduler.preempted

    alone, _ = tokens(None, 1)
    together, preempted = tokens(4, 4)
    assert preempted > 0
    assert together == alone


Step = tuple[tuple[int, ...], list[list[int]], tuple[int, ...]]


class Branching:
    """Runs given tokens and keeps the logits: a prompt, then tokens of several sequences, step by step."""

    positions = 192

    def __init__(
        self, prompt: list[int], steps: list[tuple[tuple[int, ...], list[list[int]], tuple[int, ...]]]
    ) -> None:
        """Of each step: the parents, what each sequence runs then, and how much of it is taken back."""
        self.sequences, self.new, self.back = [list(prompt)], [list(prompt)], (0,)
        self.steps, self.seen = list(steps), [torch.empty(0)]
        self.seats = max([1, *(len(parents) for parents, _, _ in steps)])
        self.checked: list[tuple[list[int], torch.Tensor]] = []

    def begin(self) -> None:
        pass

    def rows(self) -> list[Row]:
        self.seen = [torch.empty(0)] * len(self.new)
        return [Row(list(new), wanted=len(new)) for new in self.new]

    def accept(self, index: int, logits: torch.Tensor | None, hidden: torch.Tensor) -> None:
        assert logits is not None
        self.seen[index] = torch.cat([self.seen[index].reshape(-1, logits.shape[-1]), logits])

    def decide(self) -> Decision:
        self.checked += [(list(ids), seen) for ids, seen in zip(self.sequences, self.seen, strict=True)]
        self.sequences = [ids[: len(ids) - n] for ids, n in zip(self.sequences, self.back, strict=True)]
        if not self.steps:
            return Decision(done=True)
        back = self.back
        parents, self.new, self.back = self.steps.pop(0)
        self.sequences = [self.sequences[p] + new for p, new in zip(parents, self.new, strict=True)]
        return Decision(back=back, keep=parents)


def expect_alone(decoder: Decoder, strategy: Branching) -> None:
    """All logits that were seen are those of the same tokens alone."""
    for ids, logits in strategy.checked:
        expected = uncached_logits(decoder, [ids])[0, len(ids) - len(logits) :]
        torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


STEPS = [
    ((0, 0, 0), [[5], [6], [7]], (0, 0, 0)),
    ((2, 0, 2), [[8], [9], [10]], (0, 0, 0)),
    ((0, 1), [prompt_of(70, 1), [11, 12, 13]], (3, 2)),  # a long row beside a short one; some of both is taken back
    ((0, 0, 1), [[14, 15], [16], [17]], (0, 0, 0)),
    ((2,), [[18]], (0,)),
]


@pytest.mark.parametrize("length", [1, 63, 64, 100])
def test_branches_equal_each_alone(bloom: Tiny, length: int) -> None:
    decoder = load(bloom.path)
    engine = Engine(decoder, max_seq_len=192, max_batch_size=3, max_step_tokens=50)
    strategy = Branching(prompt_of(length), STEPS)
    run(engine, [Request(strategy)])
    assert len(strategy.checked) == 1 + sum(len(parents) for parents, _, _ in STEPS)
    expect_alone(decoder, strategy)
    assert engine.scheduler.pool.free == list(range(engine.scheduler.pool.size))


@pytest.mark.parametrize("blocks", [9, 10, 11, 12])
@pytest.mark.parametrize("tokens", [8, 50])
def test_branches_that_are_preempted_equal_each_alone(bloom: Tiny, blocks: int, tokens: int) -> None:
    decoder = load(bloom.path)
    engine = Engine(decoder, max_seq_len=192, max_batch_size=8, max_step_tokens=tokens, blocks=blocks)
    strategies = [Branching(prompt_of(length, length), STEPS) for length in (62, 100, 40)]
    run(engine, [Request(strategy) for strategy in strategies])
    for strategy in strategies:
        expect_alone(decoder, strategy)


def together(decoder: Decoder, count: int, seats: int = 3) -> tuple[Engine, list[Request], list[list[Token]]]:
    """An engine with greedy requests, and the tokens of each alone."""
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    prompts = [prompt_of(5 + n, n) for n in range(count)]
    expected = []
    for prompt in prompts:
        alone = Sampling(prompt, params)
        run(Engine(decoder, max_seq_len=64, max_batch_size=1), [Request(alone)])
        expected.append(alone.texts[0].continuation.tokens)
    engine = Engine(decoder, max_seq_len=64, max_batch_size=seats)
    requests = [Request(Sampling(prompt, params)) for prompt in prompts]
    for request in requests:
        engine.add(request)
    return engine, requests, expected


def tokens_of(request: Request) -> list[Token]:
    assert isinstance(request.strategy, Sampling)
    return request.strategy.texts[0].continuation.tokens


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_a_step_that_is_stopped_ends_its_requests_and_no_other(
    bloom: Tiny, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    engine, requests, expected = together(load(bloom.path), 3, seats=2)
    for _ in range(3):
        engine.step()

    def stopped(*_: object) -> None:
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr("bloomery.engine.runner.CachedAttention", stopped)
        with pytest.raises(stop):
            engine.step()
    ended = engine.lost()
    assert [update.request for update in ended] == requests[:2]
    assert engine.lost() == []
    assert all(stop.__name__ in str(update.error) for update in ended)
    while not engine.idle:
        engine.step()
    assert tokens_of(requests[2]) == expected[2]
    assert engine.scheduler.pool.free == list(range(engine.scheduler.pool.size))


def test_a_request_that_is_ended_within_a_step_ends_with_it_and_disturbs_no_other(
    bloom: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the collector closes an iterator that nobody holds any more."""
    engine, requests, expected = together(load(bloom.path), 3)
    engine.step()
    logits = engine.runner.decoder.logits

    def aborting(hidden: torch.Tensor) -> torch.Tensor:
        engine.abort(requests[1])
        return logits(hidden)

    with monkeypatch.context() as patch:
        patch.setattr(engine.runner.decoder, "logits", aborting)
        engine.step()
    assert requests[1].finished is not None
    while not engine.idle:
        engine.step()
    assert [tokens_of(requests[n]) for n in (0, 2)] == [expected[0], expected[2]]
    assert engine.scheduler.pool.free == list(range(engine.scheduler.pool.size))


def test_texts_that_run_again_are_not_counted_as_decoding(bloom: Tiny) -> None:
    """Nor is a step missing in which only single tokens ran. What gave way runs again in several chunks."""
    params = SamplingParams(max_new_tokens=70, ignore_eos=True)
    requests = [Request(Sampling(prompt_of(60, n), params)) for n in range(3)]
    engine = Engine(load(bloom.path), max_seq_len=192, max_batch_size=3, max_step_tokens=16, blocks=5)
    for request in requests:
        engine.add(request)
    rows: list[int] = []
    run_, counted = engine.runner.run, 0

    def watched(work: list[Work]) -> Iterator[Result]:
        rows.append(max(len(piece.row.ids) for piece in work))
        return run_(work)

    engine.runner.run = watched  # type: ignore[method-assign]
    while not engine.idle:
        before = engine.decoding.steps
        engine.step()
        if engine.decoding.steps > before:
            counted += 1
            assert rows[-1] == 1
    assert engine.scheduler.preempted
    assert counted == engine.decoding.steps > 70
    assert sum(count == 1 for count in rows) == counted


def test_numbers_that_are_none_within_a_prompt_end_its_request(bloom: Tiny) -> None:
    decoder = load(bloom.path)
    logits = decoder.logits

    def broken(hidden: torch.Tensor) -> torch.Tensor:
        out = logits(hidden).clone()
        out[1] = torch.nan
        return out

    decoder.logits = broken  # type: ignore[method-assign]
    engine = Engine(decoder, max_seq_len=64, max_batch_size=1)
    request = Request(PromptScores(Sampling(prompt_of(5), SamplingParams(max_new_tokens=2)), 1))
    engine.add(request)
    (update,) = engine.step()
    assert "not finite at a token of the prompt" in str(update.error)
