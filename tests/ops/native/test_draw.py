"""A number draws the token at which the cumulative probability passes it, at every level, by any number of threads."""

import struct

import numpy as np
import pytest
import torch
from torch import Tensor

from bloomery.ops import native
from bloomery.ops.draw import PART, inverse_cdf
from bloomery.ops.native.calls import address, call

pytestmark = pytest.mark.skipif(native.library() is None, reason="the library was not built")
LEVELS = range(native.level() + 1 if native.library() else 0)
levels = pytest.mark.parametrize("level", LEVELS, ids=lambda level: native.LEVELS[level])
NEARLY_1 = 1 - 2.0**-53


def drawn(x: Tensor, u: float, level: int | None = None, threads: int | None = None) -> int:
    sums, place = torch.full((-(-len(x) // PART),), torch.nan, dtype=torch.float64), torch.tensor([-7])
    doubles = struct.unpack("2q", struct.pack("2d", float(x.max()), u))
    call("draw", address(x), address(sums), address(place), len(x), *doubles, level=level, threads=threads)
    return int(place)


def logits(count: int, scale: float, seed: int = 0) -> Tensor:
    """Of which a third is impossible."""
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(count, generator=generator)
    if count > 3:
        x[torch.rand(count, generator=generator) < 1 / 3] = -torch.inf
    return x


@levels
@pytest.mark.parametrize("scale", [0.1, 3, 300])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 17, PART - 1, PART, PART + 1, 3 * PART + 5, 250_880])
def test_a_draw_is_where_the_cumulative_probability_passes_u(count: int, scale: float, level: int) -> None:
    """Beside numpy in float64, as near as its own sums are."""
    x = logits(count, scale)
    weights = np.exp(x.double().numpy() - float(x.max()))
    upto = np.concatenate(([0.0], np.cumsum(weights)))
    for u in (0.0, 0.5, NEARLY_1, *np.random.default_rng(1).random(20)):
        token, target = drawn(x, u, level), u * upto[-1]
        assert weights[token] > 0
        assert upto[token] <= target + 1e-11 * upto[-1]
        assert upto[token + 1] >= target - 1e-11 * upto[-1]


@levels
def test_few_and_far_tokens_are_found(level: int) -> None:
    """One token alone, wherever it is; and the last ones, of which each has as much as all others together."""
    for place in (0, 8, PART - 1, PART, 2 * PART + 3):
        x = torch.full((2 * PART + 4,), -torch.inf)
        x[place] = 5.0
        assert {drawn(x, u, level) for u in (0.0, 0.3, NEARLY_1)} == {place}
    x = torch.zeros(2 * PART)
    x[-1] = float(np.log(2 * PART - 1))
    assert drawn(x, 0.49, level) < 2 * PART - 1
    assert drawn(x, 0.51, level) == 2 * PART - 1


def test_threads_do_not_matter() -> None:
    x = logits(200_000, 2)
    for u in np.random.default_rng(2).random(50):
        assert drawn(x, u, threads=1) == drawn(x, u, threads=2) == drawn(x, u, threads=5)


def test_the_kernel_draws_what_pytorch_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """But where rounding decides, which is nowhere here. Also from numbers that do not lie side by side."""
    x, us = logits(100_000, 3), np.random.default_rng(3).random(200)
    ours = [inverse_cdf(x, u) for u in us]
    apart = x.repeat_interleave(2)[::2]
    assert [inverse_cdf(apart, u) for u in us] == ours
    monkeypatch.setattr(native, "library", lambda: None)
    assert [inverse_cdf(x, u) for u in us] == ours
