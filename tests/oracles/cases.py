"""What an older transformers is asked: cases by name, and the tiny models that both sides make from a seed.

Knows neither bloomery nor transformers. A case is a kind (a function of answer.py), a shape of tests/tiny.py, and what
that kind takes: a prompt and options, say, whose names and values GenerationConfig and SamplingParams share.
"""

import json
import random
from collections.abc import Collection
from pathlib import Path
from typing import Any

ANSWERS = Path(__file__).parent / "transformers-4.55.4.json"
ENDS = {"bloom-6-heads": [2, 3], "llama-multi-head": [2]}
"""Ends of sequence of each shape that is used."""
VOCABULARY = {"bloom-6-heads": 777, "llama-multi-head": 512}
PAD = 0
"""A token that a finished group takes in transformers, and that no case may choose."""
NEW = 20

Case = dict[str, Any]


def cases() -> dict[str, Case]:
    """All of them by name: the same at every call."""
    return {
        f"{kind}-{n}": make(random.Random(f"{kind} {n}")) | {"kind": kind}
        for kind, (make, count) in KINDS.items()
        for n in range(count)
    }


def answers() -> dict[str, Any]:
    """What was answered by `answers`: by name, `texts` (ids behind the prompt, their end of sequence included) and
    `scores`; by `versions`: of whom; by `weights`: seed and sha256 of each shape."""
    found: dict[str, Any] = json.loads(ANSWERS.read_text())
    return found


def _case(rng: random.Random, options: dict[str, Any], without: Collection[int] = ()) -> Case:
    """A prompt, and options that any search with beams may have beside its own."""
    shape = rng.choice(list(ENDS))
    ids = [token for token in range(4, VOCABULARY[shape]) if token not in without]
    more: dict[str, Any] = {
        "max_new_tokens": NEW,
        "suppress_tokens": [PAD],
        "length_penalty": rng.choice([1.0, 1.0, 0.0, -0.5, 2.0]),
        "early_stopping": rng.choice([False, True, "never"]),
        "num_return_sequences": rng.randint(1, options["num_beams"]),
    }
    if rng.random() < 0.7:  # likely ends, so that texts end in the middle
        more["sequence_bias"] = [[[end], rng.choice([3.0, 5.0, 6.0])] for end in ENDS[shape]]
    # Not encoder_repetition_penalty, which transformers 4.55.4 applies to the first beam alone.
    for name, value in (
        ("repetition_penalty", 1.3),
        ("encoder_no_repeat_ngram_size", 2),
        ("no_repeat_ngram_size", 2),
        ("min_new_tokens", 6),
        ("renormalize_logits", True),
    ):
        if rng.random() < 0.2:
            more[name] = value
    return {"shape": shape, "prompt": rng.choices(ids, k=rng.choice([1, 5, 30, 64, 70])), "options": options | more}


def _groups(rng: random.Random) -> Case:
    beams, groups = rng.choice([(4, 2), (4, 4), (6, 2), (6, 3), (2, 2)])
    penalty = rng.choice([0.3, 1.0, 5.0])
    return _case(rng, {"num_beams": beams, "num_beam_groups": groups, "diversity_penalty": penalty})


def _words(rng: random.Random) -> Case:
    """Phrases and choices. No prompt holds a token of theirs, which transformers would count, and no two choices begin
    alike, since it mixes up what follows them."""
    free = rng.sample(range(4, min(VOCABULARY.values())), 40)
    words: list[Any] = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        lengths = [rng.choice([1, 1, 2, 3]) for _ in range(rng.choice([1, 1, 2, 3]))]
        choice = [[free.pop() for _ in range(length)] for length in lengths]
        words.append(choice if len(choice) > 1 else choice[0])
    used = {token for word in words for part in word for token in (part if isinstance(part, list) else [part])}
    return _case(rng, {"num_beams": rng.choice([2, 2, 3, 4, 6, 8]), "force_words_ids": words}, used)


def _progress(rng: random.Random) -> Case:
    """Words of few different tokens, which begin alike and break off, and a random text."""
    words: list[Any] = []
    for _ in range(rng.randint(1, 4)):
        parts = [rng.choices(range(4, 8), k=rng.randint(1, 4)) for _ in range(rng.choice([1, 1, 2, 3]))]
        apart = [p for n, p in enumerate(parts) if not any(p[: len(q)] == q for q in parts[:n] + parts[n + 1 :])]
        words.append(apart if len(apart) > 1 else parts[0])
    shape = next(iter(ENDS))
    return {"shape": shape, "options": {"force_words_ids": words}, "tokens": rng.choices(range(4, 9), k=30)}


KINDS = {"groups": (_groups, 40), "progress": (_progress, 40), "words": (_words, 80)}
"""Of each kind, what makes a case from random numbers, and how many there are."""
