"""What values the options of a request may have, as tables.

Knows the options by name only: no tensor, no model.
"""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from bloomery.engine.form import form_texts
from bloomery.engine.spelling import (
    read_bias,
    spell_biases,
    spell_choices,
    spell_sequences,
    spell_words,
)
from bloomery.errors import UsageError

LEAST_TEMPERATURE = 1e-20
"""Logits divided by less might not be numbers any more, and the likeliest token is certain long before."""
DEFAULT_NEW_TOKENS = 100
"""Most tokens to generate where neither max_new_tokens nor max_length says so."""


class Limit(NamedTuple):
    """A range: its ends, which of them belong to it, and what to do about a value outside of it."""

    low: float
    high: float
    ends: str
    advice: str

    def holds(self, value: float) -> bool:
        above = value >= self.low if self.ends[0] == "[" else value > self.low
        return above and (value <= self.high if self.ends[1] == "]" else value < self.high)


def _from(low: int, advice: str | None = None) -> Limit:
    return Limit(low, math.inf, "[)", advice or f"give at least {low}, or leave it out")


def _within(ends: str, low: float, high: float) -> Limit:
    return Limit(low, high, ends, f"give a number in {ends[0]}{low}, {high}{ends[1]}")


_POSITIVE = Limit(0, math.inf, "()", "give a positive number; 1 changes nothing")
_OPENAI = _within("[]", -2, 2)

WHOLE = {
    "max_new_tokens": _from(1, "ask for at least 1 token"),
    "min_new_tokens": _from(0, "give 0 or more"),
    "max_length": _from(2, "give at least 2: one token of the prompt and a new one"),
    "min_length": _from(1),
    "top_k": _from(1),
    "no_repeat_ngram_size": _from(1),
    "encoder_no_repeat_ngram_size": _from(1),
    "forced_bos_token_id": _from(0, "a token's id is 0 or more"),
    "seed": Limit(0, 2**64 - 1, "[]", "give a whole number from 0 to 2^64 - 1"),
    "logprobs": _from(0, "give 0 or more"),
    "prompt_logprobs": _from(0, "give 0 or more"),
    "num_return_sequences": _from(1, "ask for at least 1 text"),
    "best_of": _from(1),
    "num_beams": _from(1, "give at least 1; 1 is no search"),
    "prompt_lookup_num_tokens": _within("[]", 1, 128),
    "max_matching_ngram_size": _within("[]", 1, 32),
    "num_assistant_tokens": _within("[]", 0, 128),
    "num_beam_groups": _from(1, "give at least 1; 1 is no group"),
}
REAL = {
    "top_h": _within("(]", 0, 1),
    "top_p": _within("(]", 0, 1),
    "min_p": _within("[]", 0, 1),
    "typical_p": _within("(]", 0, 1),
    "epsilon_cutoff": _within("()", 0, 1),
    "eta_cutoff": _within("()", 0, 1),
    "repetition_penalty": _POSITIVE,
    "encoder_repetition_penalty": _POSITIVE,
    "frequency_penalty": _OPENAI,
    "presence_penalty": _OPENAI,
    "penalty_alpha": Limit(0, 1, "(]", "give a number in (0, 1], such as 0.6; greedy is to leave it out"),
    # Log-probabilities multiplied by far more would leave the numbers.
    "guidance_scale": Limit(-1e6, 1e6, "[]", "give a number from -1e6 to 1e6; 1 is no guidance"),
    # A length to a far higher power is no number any more.
    "length_penalty": Limit(-10, 10, "[]", "give a number from -10 to 10; 0 ranks by the sum alone"),
    "diversity_penalty": Limit(0, math.inf, "()", "give a positive number"),
    "max_time": Limit(0, math.inf, "()", "give a positive number of seconds"),
}
TEXTS = ("stop_strings", "bad_words")
IDS = ("forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "negative_prompt_ids")
FLAGS = ("ignore_eos", "json_object", "remove_invalid_values", "renormalize_logits")
REQUIRED = (
    "min_new_tokens",
    "temperature",
    "num_return_sequences",
    "num_beams",
    "num_beam_groups",
    "length_penalty",
    "guidance_scale",
)
"""Numbers that are never unset."""


def canonical(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option by name as what it is to be: Python's own numbers, tuples, biases and sequences as texts.

    Raises:
        UsageError: a value is of the wrong kind or out of its range.
    """
    values = dict(given)
    for name in (*WHOLE, *REAL, "temperature"):
        if values[name] is not None or name in REQUIRED:
            values[name] = _number(name, values[name])
    _check_temperature(values["temperature"])
    for name in TEXTS:
        values[name] = _texts(name, values[name])
    for name in IDS:
        values[name] = _id_list(name, values[name])
    negative = values["negative_prompt"]
    check(negative is None or isinstance(negative, str), f"negative_prompt is {negative!r}: give a text")
    for name in FLAGS:
        check(isinstance(values[name], bool), f"{name} is {values[name]!r}: give True or False")
    early = values["early_stopping"]
    check(isinstance(early, bool) or early == "never", f"early_stopping is {early!r}: give True, False or never")
    values["bad_words_ids"] = spell_sequences("bad_words_ids", values["bad_words_ids"])
    values["force_words"] = spell_words("force_words", values["force_words"])
    values["force_words_ids"] = spell_choices("force_words_ids", values["force_words_ids"])
    values["sequence_bias"] = spell_biases("sequence_bias", values["sequence_bias"], single=False)
    values["logit_bias"] = spell_biases("logit_bias", values["logit_bias"], single=True)
    for text in values["logit_bias"]:
        _, bias = read_bias(text)
        check(-100 <= bias <= 100, f"logit_bias has {text}: give a bias in [-100, 100], or use sequence_bias")
    values |= form_texts(values)
    name = "exponential_decay_length_penalty"
    values[name] = _start_and_factor(name, values[name])
    return values


def _check_temperature(value: float) -> None:
    """Raises UsageError for one that is neither 0 nor a usable divisor."""
    check(
        value == 0 or LEAST_TEMPERATURE <= value < math.inf,
        f"temperature is {value}: give 0 (greedy) or a positive number"
        + (f", at least {LEAST_TEMPERATURE}" if value > 0 else ""),
    )


def check(right: bool, message: str) -> None:
    """Raises UsageError with the message unless it is right."""
    if not right:
        raise UsageError(message)


def _number(name: str, value: Any) -> int | float:
    if name in WHOLE:
        check(_is_whole(value), f"{name} is {value!r}: give a whole number")
        number, limit = int(value), WHOLE[name]
    else:
        check(isinstance(value, Real) and not isinstance(value, bool), f"{name} is {value!r}: give a number")
        value = value if isinstance(value, int | float) else float(value)
        if name not in REAL:
            return value
        number, limit = value, REAL[name]
    check(limit.holds(number), f"{name} is {number}: {limit.advice}")
    return number


def _texts(name: str, value: Any) -> tuple[str, ...]:
    right = isinstance(value, tuple | list) and all(isinstance(text, str) for text in value)
    check(right, f"{name} is {value!r}: give a list of texts, also for one")
    check(name != "stop_strings" or all(value), "a stop string is empty: it would end every text at once")
    check(name != "bad_words" or all(text.strip() for text in value), "a bad word is empty: it would forbid nothing")
    return tuple(value)


def _id_list(name: str, value: Any) -> tuple[int, ...]:
    values = (value,) if _is_whole(value) else value
    right = isinstance(values, tuple | list) and all(_is_whole(one) and one >= 0 for one in values)
    check(right, f"{name} is {value!r}: give token ids, 0 or more")
    return tuple(int(one) for one in values)


def _start_and_factor(name: str, value: Any) -> tuple[float, ...]:
    pair = () if value is None else value
    right = isinstance(pair, tuple | list) and len(pair) in (0, 2)
    right = right and all(isinstance(one, Real) and not isinstance(one, bool) for one in pair)
    check(right, f"{name} is {value!r}: give two numbers, the new tokens before it begins and its factor")
    if not pair:
        return ()
    start, factor = pair
    check(start >= 0 and start == int(min(start, 2**63)), f"{name} begins at {start}: give a whole number, 0 or more")
    check(0 < factor < math.inf, f"{name} has the factor {factor}: give a positive number; above 1 ends texts sooner")
    return int(start), float(factor)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
