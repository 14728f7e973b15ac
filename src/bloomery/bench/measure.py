"""Requests from their prompts to their last tokens, again and again: how long the first token takes, and each later.

Knows how to ask, and nothing of what answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bloomery.bench.spread import Spread, spread
from bloomery.bench.watch import Round, Speaks, watched
from bloomery.engine.params import SamplingParams


@dataclass(frozen=True)
class Asked:
    """What is run: `requests` prompts of random tokens at once, in each of so many rounds behind one to warm up."""

    requests: int
    prompt_length: int
    new_tokens: int
    rounds: int
    vocab_size: int
    seed: int = 0

    def prompts(self) -> list[list[int]]:
        """(requests, prompt_length) token ids, always the same."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(self.vocab_size, (self.requests, self.prompt_length), generator=generator).tolist()

    @property
    def params(self) -> SamplingParams:
        """Greedy, and past every end of sequence: all rounds do the same work."""
        return SamplingParams(max_new_tokens=self.new_tokens, ignore_eos=True)


@dataclass(frozen=True)
class Measured:
    """Seconds, and tokens that came. Of each text in every round `first_token` and `request`, from the beginning of the
    round; `per_token` of each token that followed another, None where a text comes in one piece; of each round the
    generated tokens over all its seconds."""

    warm_up: float
    first_token: Spread
    per_token: Spread | None
    request: Spread
    tokens_per_second: Spread
    tokens: int
    rounds: tuple[Round, ...]


def measure(llm: Speaks, asked: Asked) -> Measured:
    """Run the rounds.

    Raises:
        BloomeryError: what came is not what was asked for.
        UsageError: the model has no room for it.
    """
    prompts, params = asked.prompts(), asked.params
    warm = watched(llm, prompts, params)
    rounds = tuple(watched(llm, prompts, params) for _ in range(asked.rounds))
    return Measured(
        warm_up=warm.seconds,
        first_token=spread(_all(rounds, "first_tokens")),
        per_token=spread(gaps) if (gaps := _all(rounds, "gaps")) else None,
        request=spread([text[-1].at for one in rounds for text in one.texts]),
        tokens_per_second=spread([one.tokens / one.seconds for one in rounds]),
        tokens=sum(one.tokens for one in rounds),
        rounds=rounds,
    )


def _all(rounds: Sequence[Round], name: str) -> list[float]:
    return [value for one in rounds for value in getattr(one, name)]
