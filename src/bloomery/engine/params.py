"""SamplingParams: how one request wants its tokens chosen. Knows no tensor and no model."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

from bloomery.errors import UsageError

LEAST_TEMPERATURE = 1e-20
"""Logits divided by less might not be numbers any more, and the likeliest token is certain long before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Names and meanings are those of Hugging Face's GenerationConfig, with three differences: temperature 0, the
    default, is greedy; unset means off; the text ends before a stop string instead of after it.

    Raises:
        UsageError: a value is out of its range, or would have no effect.
    """

    max_new_tokens: int = 100
    """Most tokens to generate."""
    min_new_tokens: int = 0
    """Tokens before which no end-of-sequence token is chosen."""
    temperature: float = 0.0
    """0 takes the most likely token; above 0 samples, the flatter the higher."""
    top_k: int | None = None
    """Sample among the k most likely tokens only."""
    top_p: float | None = None
    """Sample among the smallest set of tokens whose probabilities reach p."""
    min_p: float | None = None
    """Sample among tokens at least this fraction as likely as the likeliest."""
    seed: int | None = None
    """Fixes the tokens, whatever else runs in the batch; unset draws one."""
    ignore_eos: bool = False
    """Go on past end-of-sequence tokens."""
    stop_strings: tuple[str, ...] = ()
    """End the text before the first of these; may be given several times."""
    logprobs: int | None = None
    """Report (with --json) each token's log-probability, and those of this many likeliest."""

    def __post_init__(self) -> None:
        self._check_kinds()
        _check(self.max_new_tokens >= 1, f"max_new_tokens is {self.max_new_tokens}: ask for at least 1 token")
        _check(
            0 <= self.min_new_tokens <= self.max_new_tokens,
            f"min_new_tokens is {self.min_new_tokens}: give a number from 0 to max_new_tokens ({self.max_new_tokens})",
        )
        _check(
            self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature < math.inf,
            f"temperature is {self.temperature}: give 0 (greedy) or a positive number"
            + (f", at least {LEAST_TEMPERATURE}" if self.temperature > 0 else ""),
        )
        _check(self.top_k is None or self.top_k >= 1, f"top_k is {self.top_k}: give at least 1, or leave it out")
        _check(self.top_p is None or 0 < self.top_p <= 1, f"top_p is {self.top_p}: give a number in (0, 1]")
        _check(self.min_p is None or 0 <= self.min_p <= 1, f"min_p is {self.min_p}: give a number in [0, 1]")
        _check(
            self.seed is None or 0 <= self.seed < 2**64, f"seed is {self.seed}: give a whole number from 0 to 2^64 - 1"
        )
        _check(self.logprobs is None or self.logprobs >= 0, f"logprobs is {self.logprobs}: give 0 or more")
        _check(all(self.stop_strings), "a stop string is empty: it would end every text at once")
        if self.temperature == 0:
            idle = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) is not None]
            _check(
                not idle,
                f"{' and '.join(idle)} would have no effect at temperature 0 (greedy): set a temperature, such as 0.8",
            )

    def _check_kinds(self) -> None:
        """Numbers and texts are what they should be; whole numbers of other libraries become Python's own."""
        for name in ("max_new_tokens", "min_new_tokens", "top_k", "seed", "logprobs"):
            value = getattr(self, name)
            if value is None and name not in ("max_new_tokens", "min_new_tokens"):
                continue
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            _check(whole, f"{name} is {value!r}: give a whole number")
            object.__setattr__(self, name, int(value))
        for name in ("temperature", "top_p", "min_p"):
            value = getattr(self, name)
            right = isinstance(value, Real) and not isinstance(value, bool)
            _check(right or (value is None and name != "temperature"), f"{name} is {value!r}: give a number")
        texts = isinstance(self.stop_strings, tuple | list) and all(isinstance(s, str) for s in self.stop_strings)
        _check(texts, f"stop_strings is {self.stop_strings!r}: give a list of texts, also for one")
        object.__setattr__(self, "stop_strings", tuple(self.stop_strings))


def _check(right: bool, message: str) -> None:
    if not right:
        raise UsageError(message)
