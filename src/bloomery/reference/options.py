"""SamplingParams -> transformers' GenerationConfig, as one table. Knows no model and runs nothing."""

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from bloomery.engine.limits import DEFAULT_NEW_TOKENS
from bloomery.engine.params import SamplingParams
from bloomery.engine.spelling import read_bias, read_sequence
from bloomery.errors import UsageError

if TYPE_CHECKING:
    from transformers import GenerationConfig


def _same(value: Any) -> Any:
    return value


def _biases(texts: tuple[str, ...]) -> dict[tuple[int, ...], float]:
    return dict(read_bias(text) for text in texts)


TABLE: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("max_new_tokens", "max_new_tokens", _same),
    ("min_new_tokens", "min_new_tokens", _same),
    ("max_length", "max_length", _same),
    ("min_length", "min_length", _same),
    ("max_time", "max_time", _same),
    ("temperature", "temperature", _same),
    ("top_h", "top_h", _same),
    ("top_k", "top_k", _same),
    ("top_p", "top_p", _same),
    ("min_p", "min_p", _same),
    ("typical_p", "typical_p", _same),
    ("epsilon_cutoff", "epsilon_cutoff", _same),
    ("eta_cutoff", "eta_cutoff", _same),
    ("repetition_penalty", "repetition_penalty", _same),
    ("encoder_repetition_penalty", "encoder_repetition_penalty", _same),
    ("no_repeat_ngram_size", "no_repeat_ngram_size", _same),
    ("encoder_no_repeat_ngram_size", "encoder_no_repeat_ngram_size", _same),
    ("sequence_bias", "sequence_bias", _biases),
    ("logit_bias", "sequence_bias", _biases),  # a token is a sequence of one
    ("bad_words_ids", "bad_words_ids", lambda texts: [list(read_sequence(text)) for text in texts]),
    ("suppress_tokens", "suppress_tokens", list),
    ("begin_suppress_tokens", "begin_suppress_tokens", list),
    ("forced_bos_token_id", "forced_bos_token_id", _same),
    ("forced_eos_token_id", "forced_eos_token_id", list),
    ("exponential_decay_length_penalty", "exponential_decay_length_penalty", _same),
    ("remove_invalid_values", "remove_invalid_values", _same),
    ("renormalize_logits", "renormalize_logits", _same),
    ("num_return_sequences", "num_return_sequences", _same),
    ("num_beams", "num_beams", _same),
    ("length_penalty", "length_penalty", _same),
    ("early_stopping", "early_stopping", _same),
)
"""Our option, theirs, and what our value is there. Options at their defaults are not given."""

BESIDE = ("seed", "logprobs", "stop_strings", "ignore_eos", "bad_words")
"""Options that no entry of a GenerationConfig is for: `ReferenceLLM` sees to them, or they say which ends there are."""


def refuse_unknown(params: SamplingParams) -> None:
    """Refuse what transformers cannot be asked for.

    Raises:
        UsageError: names the option.
    """
    known = {ours for ours, _, _ in TABLE} | set(BESIDE)
    unknown = [name for name in _given(params) if name not in known]
    if unknown:
        raise UsageError(
            f"--engine transformers does not take {unknown[0]}: drop it, or leave the request to bloomery's own engine"
        )
    least = [name for name in ("min_new_tokens", "min_length") if name in _given(params)]
    if params.ignore_eos and least:
        raise UsageError(
            f"with ignore_eos transformers knows no end of a text, so that {least[0]} would do nothing there: drop "
            f"{least[0]}, or leave the request to bloomery's own engine"
        )


def generation_config(params: SamplingParams, eos_ids: tuple[int, ...]) -> "GenerationConfig":
    """What `params` ask for, in transformers' words. What is not asked for is off, whatever their defaults are.

    Args:
        params: its bad_words are ids already.
        eos_ids: tokens that end a text.
    """
    from transformers import GenerationConfig

    given: dict[str, Any] = {"do_sample": params.temperature > 0}
    if given["do_sample"]:
        given["top_k"] = 0  # theirs is 50 where nobody says so
    if params.max_length is None:
        given["max_new_tokens"] = DEFAULT_NEW_TOKENS
    asked = _given(params)
    for ours, theirs, translate in TABLE:
        if ours in asked:
            value = translate(getattr(params, ours))
            given[theirs] = _added(given[theirs], value) if theirs == "sequence_bias" and theirs in given else value
    return GenerationConfig(
        **given,
        eos_token_id=list(eos_ids) if eos_ids and not params.ignore_eos else None,
        pad_token_id=0,  # stands behind texts that have ended, and is cut off
        return_dict_in_generate=True,
        output_scores=params.num_beams > 1,
        output_logits=params.logprobs is not None,
    )


def _given(params: SamplingParams) -> list[str]:
    """Options that are not at their defaults."""
    return [field.name for field in fields(params) if getattr(params, field.name) != field.default]


def _added(one: dict[Any, float], other: dict[Any, float]) -> dict[Any, float]:
    return {ids: one.get(ids, 0.0) + other.get(ids, 0.0) for ids in one | other}
