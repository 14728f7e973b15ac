"""Which options of a request contradict each other, or would have no effect. Knows them by name only."""

from collections.abc import Mapping
from typing import Any

from bloomery.engine.beam_limits import contradictions
from bloomery.engine.limits import DEFAULT_NEW_TOKENS, check

ONLY_BEAMS: dict[str, Any] = {
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_beam_groups": 1,
    "diversity_penalty": None,
    "force_words": (),
    "force_words_ids": (),
}
"""Options of a beam search only, and their defaults."""
ONLY_SAMPLING = ("top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Options that never take the likeliest token away, and so do nothing where that one is taken."""


def check_together(values: Mapping[str, Any]) -> None:
    """Options that exclude each other.

    Raises:
        UsageError: names both, and which to drop.
    """
    most_new, most, least_new, least = (
        values[name] for name in ("max_new_tokens", "max_length", "min_new_tokens", "min_length")
    )
    check(
        most is None or most_new is None,
        f"max_length {most} and max_new_tokens {most_new} both say where to end: drop max_length, which counts the "
        "prompt too",
    )
    limit = most_new or DEFAULT_NEW_TOKENS
    check(
        most is not None or least_new <= limit,
        f"min_new_tokens is {least_new}: give a number from 0 to max_new_tokens ({limit})",
    )
    # A prompt has a token at least.
    for name, value, reach in (("min_new_tokens", least_new, (most or 0) - 1), ("min_length", least or 0, most or 0)):
        check(
            most is None or value <= reach,
            f"{name} {value} cannot be reached within max_length {most}: drop {name}, or raise max_length",
        )
    _check_contrastive(values)
    if values["temperature"] == 0:
        used = ("top_k",) if values["penalty_alpha"] is not None else ()
        idle = [name for name in ONLY_SAMPLING if values[name] is not None and name not in used]
        check(
            not idle,
            f"{' and '.join(idle)} would have no effect at temperature 0 (greedy): set a temperature, such as 0.8",
        )
    check(
        not (values["ignore_eos"] and values["exponential_decay_length_penalty"]),
        "exponential_decay_length_penalty makes a text end, and ignore_eos goes on past its end: drop one of them",
    )
    _check_forced(values)
    _check_several(values)
    _check_guesses(values)
    _check_guidance(values)
    for right, message in contradictions(values):
        check(right, message)


def _check_several(values: Mapping[str, Any]) -> None:
    """Numbers of texts and of beams."""
    beams, texts, best_of = (values[name] for name in ("num_beams", "num_return_sequences", "best_of"))
    if beams == 1:
        idle = [name for name, default in ONLY_BEAMS.items() if values[name] != default]
        check(not idle, f"{' and '.join(idle)} would have no effect without beams: set num_beams, or leave it out")
        check(
            values["temperature"] > 0 or max(texts, best_of or 1) == 1,
            f"greedy has one text, and {'best_of' if best_of else 'num_return_sequences'} asks for "
            f"{max(texts, best_of or 1)}: set a temperature, such as 0.8, or num_beams",
        )
    check(
        beams == 1 or best_of is None,
        f"num_beams {beams} and best_of {best_of} both look for the best texts: drop best_of",
    )
    for name, most in (("num_beams", beams if beams > 1 else None), ("best_of", best_of)):
        check(
            most is None or texts <= most,
            f"num_return_sequences {texts} is more than {name} {most} finds: raise {name}, or ask for fewer",
        )


def _check_guesses(values: Mapping[str, Any]) -> None:
    """Tokens that are guessed first."""
    lookup, longest, assistant, beams = (
        values[name]
        for name in ("prompt_lookup_num_tokens", "max_matching_ngram_size", "num_assistant_tokens", "num_beams")
    )
    check(
        longest is None or lookup is not None,
        "max_matching_ngram_size would have no effect without prompt_lookup_num_tokens: set that too, or leave it out",
    )
    check(
        not lookup or not assistant,
        f"prompt_lookup_num_tokens {lookup} and num_assistant_tokens {assistant} both guess the next tokens: drop one "
        "of them",
    )
    for name, value in (("prompt_lookup_num_tokens", lookup), ("num_assistant_tokens", assistant)):
        check(
            not value or beams == 1, f"{name} {value} guesses for one text, and num_beams {beams} searches: drop {name}"
        )


def _check_contrastive(values: Mapping[str, Any]) -> None:
    """Contrastive search has candidates to choose among, one text, and nothing that chooses otherwise."""
    if values["penalty_alpha"] is None:
        return
    check((values["top_k"] or 0) > 1, "penalty_alpha chooses among the top_k likeliest tokens: give top_k, such as 4")
    others = {
        "temperature": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "best_of": None,
        "guidance_scale": 1,
        "prompt_lookup_num_tokens": None,
    }
    for name, off in (others | ONLY_BEAMS).items():
        check(
            values[name] == off,
            f"penalty_alpha and {name} {values[name]} do not go together, since contrastive search finds one text and "
            "draws nothing: drop one of them",
        )


def _check_guidance(values: Mapping[str, Any]) -> None:
    """A negative prompt needs guidance, and guidance a step for each token."""
    given = [name for name in ("negative_prompt", "negative_prompt_ids") if values[name] not in (None, ())]
    check(len(given) < 2, "negative_prompt and negative_prompt_ids are two of one kind: drop one of them")
    check(
        not given or values["guidance_scale"] != 1,
        f"{''.join(given)} would have no effect without guidance: set guidance_scale, such as 1.5, or leave it out",
    )
    scale, lookup = values["guidance_scale"], values["prompt_lookup_num_tokens"]
    check(
        scale == 1 or not lookup,
        f"guidance_scale {scale} compares two prompts at each token, and prompt_lookup_num_tokens {lookup} runs "
        "several at once: drop prompt_lookup_num_tokens",
    )


def _check_forced(values: Mapping[str, Any]) -> None:
    """A forced token that another option forbids would leave none."""
    bos = values["forced_bos_token_id"]
    for forced, ids in (("forced_eos_token_id", values["forced_eos_token_id"]), ("forced_bos_token_id", (bos,))):
        check(
            not ids or not set(ids) <= set(values["suppress_tokens"]),
            f"suppress_tokens forbids what {forced} forces: drop one of them",
        )
