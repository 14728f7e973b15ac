"""The strategy that a request's options ask for."""

from bloomery.engine.continuation import Generating
from bloomery.engine.params import SamplingParams
from bloomery.engine.strategies.beams import BeamSearch
from bloomery.engine.strategies.constrained import ConstrainedBeams
from bloomery.engine.strategies.contrastive import ContrastiveSearch
from bloomery.engine.strategies.groups import DiverseBeams
from bloomery.engine.strategies.guided import Guided
from bloomery.engine.strategies.prompt_scores import PromptScores
from bloomery.engine.strategies.sampling import Sampling
from bloomery.engine.strategies.speculative import Speculative
from bloomery.engine.strategy import Matcher
from bloomery.errors import UsageError


def build_strategy(
    prompt: list[int],
    params: SamplingParams,
    eos_ids: tuple[int, ...] = (),
    matcher: Matcher | None = None,
    draft: float | None = None,
) -> Generating:
    """What generates as `params` say.

    Args:
        matcher: watches the text, and forks with it.
        draft: what a step of the draft model costs, as a part of one of the model; None: there is no draft.

    Raises:
        UsageError: an option cannot be met behind this prompt, or with a draft, or without one.
    """
    if draft is None and params.num_assistant_tokens:
        raise UsageError(
            f"num_assistant_tokens is {params.num_assistant_tokens}, and there is no draft model to make them: name a "
            "draft, or leave it out"
        )
    strategy = _choosing(prompt, params, eos_ids, matcher, draft)
    if params.guided:
        strategy = Guided(strategy, list(params.negative_prompt_ids or prompt[-1:]), params.guidance_scale)
    if params.prompt_logprobs is not None:
        strategy = PromptScores(strategy, params.prompt_logprobs)
    return strategy


def _choosing(
    prompt: list[int],
    params: SamplingParams,
    eos_ids: tuple[int, ...],
    matcher: Matcher | None,
    draft: float | None,
) -> Generating:
    """What runs a text, or several, and chooses their tokens."""
    if draft is not None and params.num_assistant_tokens != 0:
        _check_beside_draft(params)
        return Speculative(prompt, params, eos_ids, matcher, draft=draft)
    if params.prompt_lookup_num_tokens is not None:
        return Speculative(prompt, params, eos_ids, matcher)
    if params.num_beam_groups > 1:
        return DiverseBeams(prompt, params, eos_ids, matcher)
    if params.force_words_ids:
        return ConstrainedBeams(prompt, params, eos_ids, matcher)
    if params.num_beams > 1:
        return BeamSearch(prompt, params, eos_ids, matcher)
    if params.penalty_alpha is not None:
        return ContrastiveSearch(prompt, params, eos_ids, matcher)
    return Sampling(prompt, params, eos_ids, matcher)


def _check_beside_draft(params: SamplingParams) -> None:
    """Raises UsageError for what a draft cannot guess for."""
    for name, asked in (
        ("num_beams", params.num_beams > 1),
        ("prompt_lookup_num_tokens", params.prompt_lookup_num_tokens is not None),
        ("penalty_alpha", params.penalty_alpha is not None),
        ("guidance_scale", params.guided),
    ):
        if asked:
            raise UsageError(
                f"{name} {getattr(params, name)} does not go with guesses of a draft model: drop {name}, or set "
                "num_assistant_tokens to 0"
            )
