"""Counter-based numbers are uniform, independent of each other, and pure functions of their counters."""

import numpy as np
import torch

from bloomery.ops.draw import inverse_cdf
from bloomery.ops.random import uniform


def test_a_number_is_a_pure_function_of_its_counters():
    assert uniform(7, 3, 1) == uniform(7, 3, 1)
    assert len({uniform(seed, step, draw) for seed in range(8) for step in range(8) for draw in range(8)}) == 512


def test_numbers_are_uniform_over_steps_and_over_seeds():
    for numbers in ([uniform(1, n, 0) for n in range(20000)], [uniform(n, 1, 0) for n in range(20000)]):
        counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
        chi_square = ((counts - 200) ** 2 / 200).sum()
        assert chi_square < 149  # 0.1 % point of 99 degrees of freedom


def test_neighbouring_steps_and_seeds_are_uncorrelated():
    over_steps = np.array([uniform(5, n, 0) for n in range(20001)])
    assert abs(np.corrcoef(over_steps[1:], over_steps[:-1])[0, 1]) < 0.025
    seeds = np.array([[uniform(n, 0, 0), uniform(n + 1, 0, 0)] for n in range(20000)])
    assert abs(np.corrcoef(seeds.T)[0, 1]) < 0.025


def test_inverse_cdf_draws_each_token_as_often_as_its_probability():
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0, -1.0])
    draws = np.bincount([inverse_cdf(logits, uniform(11, n, 0)) for n in range(20000)], minlength=5)
    expected = 20000 * logits.double().softmax(-1).numpy()
    assert draws[2] == 0
    likely = expected > 0
    assert ((draws - expected)[likely] ** 2 / expected[likely]).sum() < 16.3  # 0.1 % point of 3 degrees of freedom


def test_inverse_cdf_never_leaves_the_vocabulary_nor_takes_an_impossible_token():
    logits = torch.tensor([-torch.inf, 0.0, 0.0, -torch.inf])
    assert inverse_cdf(logits, 0.0) == 1
    assert inverse_cdf(logits, 1 - 2.0**-53) == 2
