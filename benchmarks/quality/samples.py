"""Draws samples from a model and says how they read: known words, loops, copies. Knows no loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, zip_longest
from pathlib import Path
from statistics import median
from typing import Any

from quality import copies, loops, words

from bloomery import LLM, SamplingParams
from bloomery.completion import Completion
from bloomery.errors import UsageError

PROMPTS = (
    "It was",
    "The old gentleman",
    "My dear",
    "There was a",
    "When the",
    "She",
    "In the evening",
    "Mr.",
    '"',
    "No",
)
BEFORE = 8
"""Tokens before a stretch of the held-out text, which stand for its prompt."""


@dataclass(frozen=True)
class Sample:
    """A text and what it continues. `cut`: it ended at a limit of tokens, perhaps in the middle of a word. `finish` and
    `seed`: how a model ended it, and what draws it again; None where nothing was drawn."""

    prompt: str
    text: str
    ids: tuple[int, ...]
    cut: bool
    finish: str | None = None
    seed: int | None = None


def draw(llm: LLM, count: int, tokens: int, temperature: float) -> list[Sample]:
    """Samples with seeds 0, 1, …, the prompts in turn, all in one batch.

    Raises:
        UsageError: prompt and tokens do not fit the context.
    """
    prompts = list(islice(cycle(PROMPTS), count))
    # A stream each, since one has the same seed for all its prompts; they are read in turns and so share the batch.
    streams = [
        llm.stream(prompt, SamplingParams(max_new_tokens=tokens, temperature=temperature, seed=seed))
        for seed, prompt in enumerate(prompts)
    ]
    done: dict[int, Completion] = {}
    for pieces in zip_longest(*streams):
        done |= {seed: piece.completion for seed, piece in enumerate(pieces) if piece and piece.completion}
    return [
        Sample(
            prompt,
            done[seed].text,
            done[seed].token_ids,
            done[seed].finish_reason == "length",
            done[seed].finish_reason,
            seed,
        )
        for seed, prompt in enumerate(prompts)
    ]


def stretches(llm: LLM, ids: Sequence[int], count: int, tokens: int) -> list[Sample]:
    """As many stretches of a text, spread evenly over it: what samples can be compared with.

    Raises:
        UsageError: the text is too short to take one.
    """
    assert llm.tokenizer is not None
    room = len(ids) - BEFORE - tokens
    if room < 0:
        raise UsageError(
            f"the held-out text has {len(ids)} tokens: {BEFORE + tokens} are needed to compare samples with"
        )
    found = []
    for number in range(count):
        start = BEFORE + room * number // count
        part = tuple(ids[start : start + tokens])
        found.append(
            Sample(llm.tokenizer.decode(ids[start - BEFORE : start]), llm.tokenizer.decode(part), part, cut=True)
        )
    return found


def judge(llm: LLM, samples: Sequence[Sample], training: Mapping[str, str], known: set[str]) -> dict[str, Any]:
    """What all samples are like together, and each of them.

    Args:
        training: file -> its text, from which they may copy.
        known: the words of these texts.
    """
    copied = copies.longest_copies([sample.text for sample in samples], training)
    rows = [_row(llm, sample, copy, known) for sample, copy in zip(samples, copied, strict=True)]
    count = sum(row["words"] for row in rows)
    unknown = sum(len(row["unknown_words"]) for row in rows)
    lengths = [row["longest_copy"]["characters"] for row in rows]
    longest = max(range(len(rows)), key=lambda number: lengths[number])
    return {
        "words": count,
        "words_in_training": count - unknown,
        "word_share": (count - unknown) / count if count else None,
        "samples_with_loop": sum(row["loop"] is not None for row in rows),
        "longest_copy": rows[longest]["longest_copy"] | {"sample": longest},
        "median_copy_characters": median(lengths),
        "samples": rows,
    }


def _row(llm: LLM, sample: Sample, copy: copies.Copy | None, known: set[str]) -> dict[str, Any]:
    assert llm.tokenizer is not None
    checked = words.check_words(sample.prompt, sample.text, sample.cut, known)
    loop = loops.longest_loop(sample.ids)
    text = copy.text if copy else ""
    tokens = len(llm.tokenizer.backend.encode(text, add_special_tokens=False).ids)
    return {
        "prompt": sample.prompt,
        "seed": sample.seed,
        "finish": sample.finish,
        "tokens": len(sample.ids),
        "words": checked.total,
        "unknown_words": checked.unknown,
        "loop": loop._asdict() if loop else None,
        "longest_copy": {
            "characters": len(text),
            "tokens": tokens,
            "text": text,
            "source": Path(copy.source).name if copy else None,
        },
        "text": sample.text,
    }
