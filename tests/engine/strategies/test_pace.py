"""What guessing costs where it does not pay, in runs and positions: 5 % of a step for each token, and no more."""

import pytest
import torch

from bloomery import SamplingParams
from bloomery.engine.engine import Engine
from bloomery.engine.request import Request
from bloomery.engine.strategies.pace import LONGEST, Pace
from bloomery.engine.strategies.speculative import CHECKING, Speculative
from bloomery.engine.strategy import Speculation
from bloomery.model.decoder import Decoder
from conftest import Tiny
from drive import load

NEW = 200


class Counting:
    """How often a runner ran, and over how many positions."""

    def __init__(self, engine: Engine, model: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs = self.positions = 0
        runner = engine.runners[model]
        run = runner.run

        def counted(batch):
            self.runs += 1
            self.positions += sum(len(work.row.ids) for work in batch)
            return run(batch)

        monkeypatch.setattr(runner, "run", counted)


def generated(
    decoder: Decoder, draft: Decoder | None, strategy: Speculative, monkeypatch: pytest.MonkeyPatch
) -> tuple[Speculation, list[Counting]]:
    engine = Engine(decoder, max_seq_len=320, max_batch_size=1, draft=draft)
    counted = [Counting(engine, model, monkeypatch) for model in range(len(engine.runners))]
    engine.add(Request(strategy))
    said = [update.said for _ in range(2000) if not engine.idle for update in engine.step()]
    assert sum(len(one.tokens) for one in said) == NEW
    assert said[-1].speculation is not None
    return said[-1].speculation, counted


@pytest.mark.parametrize("cost", [0.02, 0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_hopeless_draft_costs_less_than_five_percent(
    bloom: Tiny, cost: float, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = load(bloom.path)
    hopeless = load(bloom.path)
    hopeless.embed.tokens.weight.data = hopeless.embed.tokens.weight.data.roll(1, 0)  # its tokens are others
    prompt = bloom.prompt(20)
    params = SamplingParams(max_new_tokens=NEW, temperature=temperature, seed=1)
    strategy = Speculative(prompt, params, draft=cost)
    found, (model, draft) = generated(decoder, hopeless, strategy, monkeypatch)
    assert found.accepted <= 0.05 * NEW
    plain = NEW  # runs, the prompt's among them
    extra = model.positions - (len(prompt) + NEW - 1)
    spent = model.runs + CHECKING * extra + cost * draft.runs
    assert spent <= 1.05 * plain
    assert draft.runs >= 2  # it is not given up for good
    assert draft.positions <= len(prompt) + NEW + draft.runs  # each token once, and the guesses


def test_hopeless_look_ups_cost_less_than_five_percent(bloom: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token has stood before, and nothing is as it was."""
    decoder = load(bloom.path)
    prompt = [*range(100)]
    params = SamplingParams(
        max_new_tokens=NEW,
        temperature=50.0,
        seed=1,
        suppress_tokens=list(range(100, decoder.config.vocab_size)),
        prompt_lookup_num_tokens=10,
        max_matching_ngram_size=1,
    )
    found, (model,) = generated(decoder, None, Speculative(prompt, params), monkeypatch)
    assert found.proposed > 10
    assert found.accepted <= 0.05 * NEW
    extra = model.positions - (len(prompt) + NEW - 1)
    assert extra > 0
    assert model.runs + CHECKING * extra <= 1.05 * NEW


def test_a_good_draft_is_asked_for_all_it_may_guess() -> None:
    pace = Pace(5, 0.15)
    for _ in range(20):
        assert pace.wanted() == 5
        pace.learn(5, 5, 6)


@pytest.mark.parametrize("cost", [1.0, 4.0])
def test_a_draft_that_costs_as_much_as_the_model_is_never_asked(cost: float) -> None:
    pace = Pace(5, cost)
    for _ in range(600):
        assert pace.wanted() == 0
        pace.learn(0, 0, 1)


def test_a_draft_that_turns_good_after_a_long_while_is_used_again() -> None:
    pace, tokens = Pace(5, 0.15), 0
    while tokens < 2000:
        guessed = pace.wanted()
        pace.learn(guessed, 0, 1)
        tokens += 1
    waited = 0
    while pace.wanted() < 5:
        guessed = pace.wanted()
        pace.learn(guessed, guessed, guessed + 1)
        waited += guessed + 1
    assert waited <= LONGEST + 128


@pytest.mark.parametrize("cost", [0.05, 0.3])
@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.7, 0.9])
def test_tokens_for_their_cost_come_near_to_the_best_fixed_number_of_guesses(part: float, cost: float) -> None:
    """Right guesses are drawn by chance; 5,000 steps; the best of 0 to 5 guesses is known in advance."""
    generator = torch.Generator().manual_seed(5)

    def rate(pace: Pace | None, fixed: int = 0) -> float:
        tokens = spent = 0.0
        for _ in range(5000):
            guessed = pace.wanted() if pace else fixed
            draws = (torch.rand(guessed, generator=generator) < part).tolist()
            right = draws.index(False) if False in draws else guessed
            if pace:
                pace.learn(guessed, right, right + 1)
            tokens += right + 1
            spent += 1 + cost * guessed
        return tokens / spent

    best = max(rate(None, fixed) for fixed in range(6))
    assert rate(Pace(5, cost)) >= 0.9 * best
    if part == 0.0:
        assert rate(Pace(5, cost)) >= 0.99 * best
