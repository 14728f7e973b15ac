"""The strategy that a request's options ask for."""

from typing import Protocol

from bloomery.engine.continuation import Rules
from bloomery.engine.params import SamplingParams
from bloomery.engine.strategies.beams import BeamSearch
from bloomery.engine.strategies.sampling import Sampling
from bloomery.engine.strategies.speculative import Speculative
from bloomery.engine.strategy import Matcher, Strategy
from bloomery.errors import UsageError


class Generating(Strategy, Protocol):
    """A strategy that makes texts."""

    rules: Rules


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
    if draft is not None and params.num_assistant_tokens != 0:
        _check_beside_draft(params)
        return Speculative(prompt, params, eos_ids, matcher, draft=draft)
    if params.prompt_lookup_num_tokens is not None:
        return Speculative(prompt, params, eos_ids, matcher)
    if params.num_beams > 1:
        return BeamSearch(prompt, params, eos_ids, matcher)
    return Sampling(prompt, params, eos_ids, matcher)


def _check_beside_draft(params: SamplingParams) -> None:
    """Raises UsageError for what a draft cannot guess for."""
    for name, asked in (
        ("num_beams", params.num_beams > 1),
        ("prompt_lookup_num_tokens", params.prompt_lookup_num_tokens is not None),
    ):
        if asked:
            raise UsageError(
                f"{name} {getattr(params, name)} does not go with guesses of a draft model: drop {name}, or set "
                "num_assistant_tokens to 0"
            )
