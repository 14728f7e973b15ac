"""The strategy that a request's options ask for."""

from typing import Protocol

from bloomery.engine.continuation import Rules
from bloomery.engine.params import SamplingParams
from bloomery.engine.strategies.beams import BeamSearch
from bloomery.engine.strategies.constrained import ConstrainedBeams
from bloomery.engine.strategies.groups import DiverseBeams
from bloomery.engine.strategies.sampling import Sampling
from bloomery.engine.strategy import Matcher, Strategy


class Generating(Strategy, Protocol):
    """A strategy that makes texts."""

    rules: Rules


def build_strategy(
    prompt: list[int], params: SamplingParams, eos_ids: tuple[int, ...] = (), matcher: Matcher | None = None
) -> Generating:
    """What generates as `params` say.

    Args:
        matcher: watches the text, and forks with it.

    Raises:
        UsageError: an option cannot be met behind this prompt.
    """
    if params.num_beam_groups > 1:
        return DiverseBeams(prompt, params, eos_ids, matcher)
    if params.force_words_ids:
        return ConstrainedBeams(prompt, params, eos_ids, matcher)
    if params.num_beams > 1:
        return BeamSearch(prompt, params, eos_ids, matcher)
    return Sampling(prompt, params, eos_ids, matcher)
