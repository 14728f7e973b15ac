"""The strategy that a request's options ask for."""

from bloomery.engine.continuation import Generating
from bloomery.engine.params import SamplingParams
from bloomery.engine.strategies.beams import BeamSearch
from bloomery.engine.strategies.contrastive import ContrastiveSearch
from bloomery.engine.strategies.guided import Guided
from bloomery.engine.strategies.prompt_scores import PromptScores
from bloomery.engine.strategies.sampling import Sampling
from bloomery.engine.strategy import Matcher


def build_strategy(
    prompt: list[int], params: SamplingParams, eos_ids: tuple[int, ...] = (), matcher: Matcher | None = None
) -> Generating:
    """What generates as `params` say.

    Args:
        matcher: watches the text, and forks with it.

    Raises:
        UsageError: an option cannot be met behind this prompt.
    """
    strategy = _choosing(prompt, params, eos_ids, matcher)
    if params.guided:
        strategy = Guided(strategy, list(params.negative_prompt_ids or prompt[-1:]), params.guidance_scale)
    if params.prompt_logprobs is not None:
        strategy = PromptScores(strategy, params.prompt_logprobs)
    return strategy


def _choosing(
    prompt: list[int], params: SamplingParams, eos_ids: tuple[int, ...], matcher: Matcher | None
) -> Generating:
    """What runs a text, or several, and chooses their tokens."""
    if params.num_beams > 1:
        return BeamSearch(prompt, params, eos_ids, matcher)
    if params.penalty_alpha is not None:
        return ContrastiveSearch(prompt, params, eos_ids, matcher)
    return Sampling(prompt, params, eos_ids, matcher)
