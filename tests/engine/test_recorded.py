"""Recorded decoding steps are the steps themselves, bit by bit."""

import logging
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from bloomery import LLM, SamplingParams
from bloomery.engine.recorded import ROWS
from bloomery.ops import native
from tiny import SHAPES, Tiny

pytestmark = pytest.mark.skipif(native.library() is None, reason="the library was not built")
NATIVE = [shape.name for shape in SHAPES if "mixtral" not in shape.name]
PARAMS = SamplingParams(max_new_tokens=80, ignore_eos=True, logprobs=3)


def answers(llm: LLM, prompts: list[list[int]]) -> list[object]:
    return [(one.token_ids, one.logprobs) for one in llm.generate(prompts, PARAMS)]


def unrecorded(llm: LLM) -> LLM:
    llm.engine.runner.recorded.takes = lambda rows, attend: False
    return llm


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NATIVE)
def test_recorded_equals_not_recorded(tiny: Callable[[str], Tiny], name: str, dtype: str) -> None:
    """Texts of several lengths that begin and end at different steps, over the edges of blocks, in both directions."""
    prompts = [tiny(name).prompt(length) for length in (3, 70, 20)]
    one, other = LLM(tiny(name).path, dtype=dtype), unrecorded(LLM(tiny(name).path, dtype=dtype))
    for batch in (prompts[:1], prompts, prompts[1:], prompts[2:]):
        assert answers(one, batch) == answers(other, batch)
    assert set(one.engine.runner.recorded._steps) == {1, 2, 3}


def test_recorded_equals_not_recorded_with_keys_and_values_in_8_bits(tiny: Callable[[str], Tiny]) -> None:
    name = "bloom-6-heads"
    prompts = [tiny(name).prompt(length) for length in (3, 70, 20)]
    one, other = LLM(tiny(name).path, cache_dtype="int8"), unrecorded(LLM(tiny(name).path, cache_dtype="int8"))
    for batch in (prompts[:1], prompts, prompts[1:]):
        assert answers(one, batch) == answers(other, batch)
    assert set(one.engine.runner.recorded._steps) == {1, 2, 3}


def test_a_recording_is_made_again_where_a_text_outgrows_it_or_threads_change(tiny: Callable[[str], Tiny]) -> None:
    name = "bloom-6-heads"
    llm, other = LLM(tiny(name).path), unrecorded(LLM(tiny(name).path))
    recorded = llm.engine.runner.recorded
    before = torch.get_num_threads()
    try:
        for length, threads in ((3, 2), (200, 2), (200, 1), (3, 3)):
            torch.set_num_threads(threads)
            known = recorded._steps.get(1)
            assert answers(llm, [tiny(name).prompt(length)]) == answers(other, [tiny(name).prompt(length)])
            assert recorded._steps[1] is not known
    finally:
        torch.set_num_threads(before)


def test_what_python_decides_at_every_step_is_not_recorded_and_said(tiny: Callable[[str], Tiny], caplog) -> None:
    name = next(shape.name for shape in SHAPES if "mixtral" in shape.name)
    llm, other = LLM(tiny(name).path), unrecorded(LLM(tiny(name).path))
    with caplog.at_level(logging.INFO):
        assert answers(llm, [tiny(name).prompt(5)]) == answers(other, [tiny(name).prompt(5)])
    assert sum("decoding steps are not recorded" in message for message in caplog.messages) == 1
    assert not llm.engine.runner.recorded._steps


def test_large_batches_are_not_recorded(tiny: Callable[[str], Tiny]) -> None:
    name = "bloom-6-heads"
    llm = LLM(tiny(name).path, max_batch_size=ROWS + 1, max_seq_len=64)
    llm.generate([tiny(name).prompt(3, seed) for seed in range(ROWS + 1)], SamplingParams(max_new_tokens=4))
    assert not llm.engine.runner.recorded._steps


def test_recording_does_not_import_pytorchs_compiler() -> None:
    """66 MB, and a second within the third step."""
    generate = "import bloomery, sys; bloomery.LLM().generate('It was'); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", generate], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
