"""Tokens are counted where they arrive, times are those of their arrival, and a miscount is never a figure."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from bloomery import LLM, BloomeryError, Completion, SamplingParams
from bloomery.bench.watch import watched
from bloomery.completion import Piece
from bloomery.engine.request import Timings
from conftest import Tiny

PROMPTS = [[5, 6, 7], [8, 9, 10]]
PARAMS = SamplingParams(max_new_tokens=4, ignore_eos=True)


class Clock:
    """Shows what it was set to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Said:
    """Plays an LLM: at each moment some tokens of a text; a text's completion comes with its last piece."""

    def __init__(self, clock: Clock, script: list[tuple[float, int, list[int]]], **wrong: Any) -> None:
        self.clock, self.script, self.wrong = clock, script, wrong

    def stream(self, prompts: Sequence[list[int]], params: SamplingParams) -> Iterator[Piece]:
        ids: dict[int, list[int]] = {}
        for at, index, tokens in self.script:
            self.clock.now = 100.0 + at
            ids.setdefault(index, []).extend(tokens)
            last = all(later != index for _, later, _ in self.script[self.script.index((at, index, tokens)) + 1 :])
            done = self.completion(prompts[index], ids[index]) if last and not self.wrong.get("endless") else None
            yield Piece(index, 0, "", tuple(tokens), done)

    def completion(self, prompt: list[int], ids: list[int]) -> Completion:
        done = Completion(tuple(prompt), "", tuple(ids), "length", None, Timings(0.0, 0.5, 4.0), 0)
        return replace(done, **{name: value for name, value in self.wrong.items() if name != "endless"})


def test_times_are_of_arrivals_and_tokens_are_those_that_came() -> None:
    clock = Clock()
    script = [(1.0, 0, [1]), (1.5, 1, [2]), (2.0, 0, [3]), (2.5, 1, [4, 5, 6]), (2.75, 0, [7, 8])]
    found = watched(Said(clock, script), PROMPTS, PARAMS, clock)
    assert found.tokens == 8
    assert found.first_tokens == [1.0, 1.5]
    assert found.gaps == pytest.approx([1.0, 0.375, 1 / 3])
    assert found.seconds == 2.75


def test_a_text_in_one_piece_began_where_its_engine_says() -> None:
    clock = Clock()
    script = [(2.0, 0, [1, 2, 3, 4]), (4.0, 1, [5, 6, 7, 8])]
    found = watched(Said(clock, script), PROMPTS, PARAMS, clock)
    assert found.tokens == 8
    assert found.first_tokens == [0.5, 0.5]
    assert found.gaps == pytest.approx([0.5, 3.5 / 3])


FULL = [(1.0, 0, [1, 2]), (2.0, 0, [3, 4]), (2.0, 1, [1, 2, 3, 4])]


@pytest.mark.parametrize(
    ("script", "wrong", "said"),
    [
        ([(1.0, 0, [1]), (2.0, 0, [2, 3]), FULL[2]], {}, "text 1 of 2 has 3 tokens, and 4 were to be measured"),
        ([(1.0, 0, [5, 6, 7, 1]), *FULL[1:]], {}, "text 1 of 2 has 6 tokens"),  # the prompt's among them
        ([*FULL[:2], FULL[2], (3.0, 1, [0])], {}, "text 2 of 2 has 5 tokens"),  # of rows that are nobody's
        (FULL, {"token_ids": (1, 2, 3)}, "is not made of the pieces that came"),
        (FULL, {"prompt_ids": (5, 6)}, "stands behind another prompt"),
        (FULL, {"endless": True}, "text 1 of 2 never ended"),
    ],
)
def test_a_miscount_is_no_figure(script: Any, wrong: dict[str, Any], said: str) -> None:
    clock = Clock()
    with pytest.raises(BloomeryError, match=said):
        watched(Said(clock, script, **wrong), PROMPTS, PARAMS, clock)


@pytest.mark.parametrize("shapes", ["dynamic", "static", "bucket"])
def test_an_engine_that_fills_its_batch_gives_what_was_asked_for(bloom: Tiny, shapes: Any) -> None:
    llm = LLM(bloom.path, max_batch_size=3, max_seq_len=64, shapes=shapes)
    found = watched(llm, [bloom.prompt(9), bloom.prompt(20)], SamplingParams(max_new_tokens=7, ignore_eos=True))
    assert found.tokens == 14
    assert [len(text) for text in found.texts] == [7, 7]
    assert len(found.gaps) == 12


def test_a_text_that_ends_early_is_refused(bloom: Tiny) -> None:
    llm, prompt = LLM(bloom.path), bloom.prompt(9)
    third = bloom.greedy(prompt)[2]
    llm.folder = replace(llm.folder, generation={"eos_token_id": third})
    early = bloom.greedy(prompt).index(third) + 1
    with pytest.raises(BloomeryError, match=f"text 1 of 1 has {early} tokens, and 7 were to be measured"):
        watched(llm, [prompt], SamplingParams(max_new_tokens=7))
    assert watched(llm, [prompt], SamplingParams(max_new_tokens=7, ignore_eos=True)).tokens == 7
