"""Sampling with a draft has the distribution of sampling without one; a test that cannot see a wrong one holds nothing.

No model runs: logits of the next token are rows of a table, the last token's, so that every probability is known.
"""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

from bloomery import SamplingParams
from bloomery.engine.strategies import speculative
from bloomery.engine.strategies.speculative import Speculative
from bloomery.ops.draw import accept_or_redraw, inverse_cdf
from bloomery.ops.random import uniform

VOCAB, TEMPERATURE, TOP_K = 5, 0.8, 4
SAMPLES = 400
SEEDS = range(8)
LENGTH = 4
LEAST = 1e-3


def table(seed: int) -> Tensor:
    """(VOCAB, VOCAB): logits behind each token."""
    return 1.5 * torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed))


MODEL, DRAFT = table(1), table(2)


def generate(seed: int) -> list[int]:
    """Tokens of one text, with the tables in place of models."""
    params = SamplingParams(max_new_tokens=LENGTH, temperature=TEMPERATURE, top_k=TOP_K, seed=seed)
    strategy = Speculative([0], params, draft=0.1)
    said: list[int] = []
    while True:
        for index, row in enumerate(strategy.rows()):
            if row.ids and row.wanted:
                logits = (MODEL, DRAFT)[row.model][row.ids][-row.wanted :]
                strategy.accept(index, logits, torch.empty(0))
        decision = strategy.decide()
        said += [token.id for one in decision.said for token in one.tokens]
        if decision.done:
            return said


def probabilities() -> Tensor:
    """Of each next token behind each, as transformers warps them: (VOCAB, VOCAB)."""
    warp = LogitsProcessorList([TemperatureLogitsWarper(TEMPERATURE), TopKLogitsWarper(TOP_K)])
    return warp(torch.zeros(VOCAB, 1, dtype=torch.long), MODEL.clone()).double().softmax(-1)


def p_value(texts: list[tuple[int, ...]]) -> float:
    """Pearson's chi-square of whole texts; those that are expected less than five times count as one."""
    chances = {(0,): 1.0}
    step = probabilities().tolist()
    for _ in range(LENGTH):
        chances = {(*text, token): p * q for text, p in chances.items() for token, q in enumerate(step[text[-1]])}
    counts = Counter((0, *text) for text in texts)
    if any(chances[text] == 0 for text in counts):
        return 0.0  # a token that top_k forbids
    often = [text for text, chance in chances.items() if chance * len(texts) >= 5]
    expected = [chances[text] * len(texts) for text in often]
    seen = [float(counts[text]) for text in often]
    expected.append(len(texts) - sum(expected))
    seen.append(len(texts) - sum(seen))
    statistic = sum((a - b) ** 2 / b for a, b in zip(seen, expected, strict=True))
    degrees = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, torch.tensor(statistic / 2, dtype=torch.float64)))


def p_values() -> Iterator[float]:
    for seed in SEEDS:
        yield p_value([tuple(generate(seed * SAMPLES + n)) for n in range(SAMPLES)])


def test_texts_are_distributed_as_the_model_has_them() -> None:
    found = list(p_values())
    assert min(found) > LEAST, found


def always(target: Tensor, drawn_from: Tensor, guess: int, test: float, again: float) -> int:
    return guess


def redrawn_from_all(target: Tensor, drawn_from: Tensor, guess: int, test: float, again: float) -> int:
    """What is forgotten: the rejected part must be taken out of what is drawn from next."""
    p, q = target.double().softmax(-1), drawn_from.double().softmax(-1)
    return guess if test * float(q[guess]) < float(p[guess]) else inverse_cdf(target, again)


@pytest.mark.parametrize("broken", [always, redrawn_from_all], ids=lambda way: way.__name__)
def test_a_broken_acceptance_is_seen(broken: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculative, "accept_or_redraw", broken)
    assert sum(p < LEAST for p in p_values()) >= 7


def test_a_draft_that_draws_with_the_models_own_numbers_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloomery.engine.strategies.guessers.uniform", lambda *key: uniform(*key[:3], 2))
    assert sum(p < LEAST for p in p_values()) >= 7


def test_accepted_as_often_as_the_two_distributions_overlap() -> None:
    """Leviathan et al. 2023, theorem 3.5: the sum of min(p, q)."""
    p, q = (probabilities(), DRAFT.double().softmax(-1))
    expected = float(torch.minimum(p[0], q[0]).sum())
    tests = 4000
    right = 0
    for n in range(tests):
        guess = inverse_cdf(DRAFT[0], uniform(n, 0))
        right += accept_or_redraw(p[0].log(), DRAFT[0], guess, uniform(n, 1), uniform(n, 2)) == guess
    assert right / tests == pytest.approx(expected, abs=5 * (expected * (1 - expected) / tests) ** 0.5)


def test_of_the_same_distribution_every_guess_is_accepted() -> None:
    for n in range(100):
        assert accept_or_redraw(MODEL[1], MODEL[1].clone(), n % VOCAB, 1 - 2.0**-53, 0.5) == n % VOCAB
