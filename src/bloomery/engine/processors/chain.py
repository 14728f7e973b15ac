"""The order in which a request's processors stand, which is Hugging Face's, and what they ask of a vocabulary.

Knows options, and chooses no token.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bloomery.engine.form import FORMS
from bloomery.engine.params import SamplingParams
from bloomery.engine.processors import forbid, penalties, warp
from bloomery.engine.processors.signature import Processor
from bloomery.engine.spelling import read_bias, read_choice, read_sequence
from bloomery.errors import UsageError


class Place(NamedTuple):
    """What a request's processors may need to know of it, beside their own option."""

    prompt: Tensor  # (P,) int64
    length: int  # P
    begin: int  # length of the history at which the first token of the text's own is chosen
    end: int  # most tokens of prompt and text
    eos_ids: tuple[int, ...]
    keep: int  # tokens that cutting always leaves
    taken: Sequence[int]  # tokens of other groups of beams in this step, at any time


Row = tuple[str, Callable[[Any, Place], Processor]]

ORDER: tuple[Row, ...] = (
    ("sequence_bias", lambda texts, at: penalties.sequence_bias([read_bias(text) for text in texts])),
    # OpenAI's name for biases of single tokens: beside those of sequences.
    ("logit_bias", lambda texts, at: penalties.sequence_bias([read_bias(text) for text in texts])),
    ("diversity_penalty", lambda penalty, at: penalties.diversity(penalty, at.taken)),
    ("encoder_repetition_penalty", lambda value, at: penalties.encoder_repetition(value, at.prompt)),
    ("repetition_penalty", lambda value, at: penalties.repetition(value)),
    # OpenAI's penalties for the same fault: behind the factor, since they are subtracted and would be scaled by it.
    ("frequency_penalty", lambda value, at: penalties.frequency(value, at.length)),
    ("presence_penalty", lambda value, at: penalties.presence(value, at.length)),
    ("no_repeat_ngram_size", lambda size, at: forbid.no_repeat_ngram(size)),
    ("encoder_no_repeat_ngram_size", lambda size, at: forbid.encoder_no_repeat_ngram(size, at.prompt)),
    ("bad_words_ids", lambda texts, at: penalties.sequence_bias([(read_sequence(t), -torch.inf) for t in texts])),
    ("min_length", lambda length, at: forbid.before_length(length, at.eos_ids)),
    ("min_new_tokens", lambda count, at: forbid.before_length(at.length + count, at.eos_ids)),
    ("forced_bos_token_id", lambda token, at: forbid.only_at_length(1, (token,))),
    ("forced_eos_token_id", lambda ids, at: forbid.only_at_length(at.end - 1, ids)),
    ("remove_invalid_values", lambda _, at: forbid.invalid_values),
    ("exponential_decay_length_penalty", lambda p, at: penalties.decaying_length(p[0], p[1], at.length, at.eos_ids)),
    ("suppress_tokens", lambda ids, at: forbid.always(ids)),
    ("begin_suppress_tokens", lambda ids, at: forbid.at_length(at.begin, ids)),
    # From here on only where a token is drawn.
    ("temperature", lambda value, at: warp.temperature(value)),
    ("top_h", lambda fraction, at: warp.top_h(fraction)),
    ("top_k", lambda k, at: warp.top_k(k, at.keep)),
    ("top_p", lambda p, at: warp.top_p(p, at.keep)),
    ("min_p", lambda fraction, at: warp.min_p(fraction, at.keep)),
    ("typical_p", lambda mass, at: warp.typical_p(mass, at.keep)),
    ("epsilon_cutoff", lambda epsilon, at: warp.epsilon_cutoff(epsilon, at.keep)),
    ("eta_cutoff", lambda epsilon, at: warp.eta_cutoff(epsilon, at.keep)),
    ("renormalize_logits", lambda _, at: warp.renormalize),
)
"""Options and what each puts into the chain. What Hugging Face lacks stands beside what it is akin to."""

NEUTRAL: dict[str, tuple[float, ...]] = {
    "temperature": (0.0, 1.0),
    "top_p": (1.0,),
    "typical_p": (1.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "frequency_penalty": (0.0,),
    "presence_penalty": (0.0,),
    "min_new_tokens": (0,),
}
"""Values that change nothing, and so put nothing into the chain."""

ENDS = ("min_length", "min_new_tokens")
"""Nothing to do for a model whose texts have no end."""

FORBIDDING = (
    *FORMS,
    "min_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "sequence_bias",
    "bad_words",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
)


def build_processors(
    params: SamplingParams,
    prompt: Sequence[int],
    eos_ids: tuple[int, ...] = (),
    *,
    keep: int = 1,
    taken: Sequence[int] = (),
) -> list[Processor]:
    """What `params` asks for behind one prompt, in the order in which Hugging Face applies it.

    Args:
        params: its bad_words are ids already.
        keep: tokens that top_k and its like always leave. Beams need one more than there are ends of sequence.
        taken: tokens that other groups of beams have taken, whenever a processor runs.

    Raises:
        UsageError: an option cannot be met behind this prompt, or by a model with these ends of sequence.
    """
    assert not params.bad_words, "words become ids before they reach the engine"
    length = len(prompt)
    _check_place(params, length, eos_ids)
    begin = length + 1 if length == 1 and params.forced_bos_token_id is not None else length
    at = Place(torch.tensor(prompt), length, begin, length + params.most_new_tokens(length), eos_ids, keep, taken)
    return [
        build(value, at)
        for name, build in ORDER
        if _asked(name, value := getattr(params, name)) and (eos_ids or name not in ENDS)
    ]


def check_vocabulary(params: SamplingParams, size: int) -> None:
    """Refuse what no model with `size` tokens can do.

    Raises:
        UsageError: a token does not exist, or top_k or its like is more than there are.
    """
    for name in ("top_k", "logprobs", "prompt_logprobs"):
        count = getattr(params, name)
        if count is not None and count > size:
            raise UsageError(f"{name} is {count}, but the model has {size} tokens: lower it, or leave it out")
    biases = {name: [read_bias(t)[0] for t in getattr(params, name)] for name in ("sequence_bias", "logit_bias")}
    named = {
        **{name: [token for ids in sequences for token in ids] for name, sequences in biases.items()},
        "bad_words_ids": [token for text in params.bad_words_ids for token in read_sequence(text)],
        "force_words_ids": [token for text in params.force_words_ids for ids in read_choice(text) for token in ids],
        "forced_bos_token_id": [] if params.forced_bos_token_id is None else [params.forced_bos_token_id],
        "forced_eos_token_id": params.forced_eos_token_id,
        "suppress_tokens": params.suppress_tokens,
        "negative_prompt_ids": params.negative_prompt_ids,
        "begin_suppress_tokens": params.begin_suppress_tokens,
    }
    for name, ids in named.items():
        wrong = next((token for token in ids if token >= size), None)
        if wrong is not None:
            raise UsageError(f"{name} names token {wrong}, which is outside the model's vocabulary of {size}")


def likely_culprits(params: SamplingParams) -> str:
    """Options that may have left no token to choose, for an error message."""
    names = [name for name in FORBIDDING if _asked(name, getattr(params, name))]
    return " or ".join(names + ["a higher temperature"] * (params.temperature > 0))


def _asked(name: str, value: Any) -> bool:
    off = value is None or value is False or value == ()
    return not off and value not in NEUTRAL.get(name, ())


def _check_place(params: SamplingParams, length: int, eos_ids: tuple[int, ...]) -> None:
    new = params.most_new_tokens(length)
    limit = f"max_length {params.max_length}" if params.max_length is not None else f"max_new_tokens {new}"
    if new < 1:
        raise UsageError(f"{limit} leaves no room behind the prompt's {length} tokens: raise max_length")
    for name, wanted in (("min_length", (params.min_length or 0) - length), ("min_new_tokens", params.min_new_tokens)):
        if wanted > new:
            raise UsageError(
                f"{name} {getattr(params, name)} cannot be reached within {limit} behind the prompt's {length} tokens: "
                f"drop {name}, or raise {limit.split()[0]}"
            )
    if params.forced_bos_token_id is not None and length != 1:
        raise UsageError(
            f"forced_bos_token_id comes behind a prompt of one token, and this one has {length}: drop "
            "forced_bos_token_id, or put the token at the end of the prompt"
        )
    if params.exponential_decay_length_penalty and not eos_ids:
        raise UsageError(
            "exponential_decay_length_penalty needs an end-of-sequence token, and the model names none: drop it"
        )
    ends = [text for text in params.bad_words_ids if read_sequence(text) in {(token,) for token in eos_ids}]
    if ends:
        # Hugging Face leaves these out without a word.
        raise UsageError(
            f"bad_words_ids has {ends[0]}, which ends a text: take it out, and give ignore_eos, min_new_tokens or "
            "suppress_tokens for what is meant"
        )
