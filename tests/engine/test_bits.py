"""On a CPU, with our own kernels: the same bits alone, batched, in chunks, token by token, checked as guesses, in every
format and with any number of threads."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bloomery import LLM, Completion, SamplingParams
from bloomery.ops import native
from tiny import SHAPES, Tiny

pytestmark = pytest.mark.skipif(native.library() is None, reason="the library was not built")
FORMS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quant": "int8"},
    "int4": {"dtype": "float32", "quant": "int4"},
    "int4-g128": {"dtype": "bfloat16", "quant": "int4-g128"},
    "int8-cache": {"dtype": "bfloat16", "cache_dtype": "int8"},
}
ONE_OF_EACH = {shape.family: shape.name for shape in SHAPES}
PARAMS = SamplingParams(max_new_tokens=70, ignore_eos=True, logprobs=4)
LENGTHS = (30, 1, 64, 100, 7)


def said(done: Completion) -> object:
    """Every number that it reports, to the last bit."""
    return done.token_ids, done.logprobs


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_alone_equals_batched_equals_chunked(tiny: Callable[[str], Tiny], family: str, form: str) -> None:
    model = tiny(ONE_OF_EACH[family])
    prompts = [model.prompt(length) for length in LENGTHS]
    llm, chunked = LLM(model.path, **FORMS[form]), LLM(model.path, max_step_tokens=11, **FORMS[form])
    together = llm.generate(prompts, PARAMS)
    assert [said(done) for done in chunked.generate(prompts[::-1], PARAMS)][::-1] == [said(done) for done in together]
    for prompt, done in zip(prompts, together, strict=True):
        assert said(llm.generate(prompt, PARAMS)[0]) == said(done)
    ids = [*prompts[0], *together[0].token_ids]
    assert torch.equal(chunked.logits(ids), llm.logits(ids))
    # What each token was chosen from, one at a time, is what the whole text gives at once.
    logits = llm.logits(ids)[len(prompts[0]) - 1 : -1]
    assert logits.argmax(-1).tolist() == list(together[0].token_ids)
    best = logits.log_softmax(-1).amax(-1).tolist()
    assert [scores.logprob for scores in together[0].logprobs] == best


@pytest.mark.parametrize("form", FORMS)
def test_any_number_of_threads_gives_the_same(bloom: Tiny, form: str) -> None:
    before, answers = torch.get_num_threads(), []
    llm = LLM(bloom.path, **FORMS[form])
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            answers.append([said(done) for done in llm.generate([bloom.prompt(n) for n in LENGTHS], PARAMS)])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("form", FORMS)
def test_guesses_that_are_checked_change_nothing(bloom: Tiny, form: str) -> None:
    prompts = [3 * bloom.prompt(length) for length in LENGTHS]
    llm = LLM(bloom.path, **FORMS[form])
    guessed = llm.generate(prompts, replace(PARAMS, prompt_lookup_num_tokens=5))
    assert [said(done) for done in guessed] == [said(done) for done in llm.generate(prompts, PARAMS)]
    assert sum(done.speculation.accepted for done in guessed) > 20


def test_texts_of_one_prompt_have_their_own_copies_of_what_is_kept_in_8_bits(bloom: Tiny) -> None:
    """Each is what it would be on its own: the whole text at once gives the numbers it was drawn from."""
    llm, prompt = LLM(bloom.path, cache_dtype="int8"), bloom.prompt(100)  # a block, and a half-full one that is copied
    params = replace(PARAMS, num_return_sequences=3, temperature=1.0, seed=5, logprobs=0)
    texts = llm.generate(prompt, params)
    assert len({done.token_ids for done in texts}) == 3
    for done in texts:
        logits = llm.logits([*prompt, *done.token_ids])[len(prompt) - 1 : -1]
        chosen = logits.log_softmax(-1)[range(len(done.token_ids)), list(done.token_ids)]
        assert [scores.logprob for scores in done.logprobs] == chosen.tolist()


def test_a_search_forks_what_is_kept_in_8_bits(bloom: Tiny) -> None:
    """Beams that end at the same text have its probability, as it has on its own."""
    llm, prompt = LLM(bloom.path, cache_dtype="int8"), bloom.prompt(100)
    params = SamplingParams(max_new_tokens=40, ignore_eos=True, num_beams=4, num_return_sequences=4, length_penalty=0.0)
    for done in llm.generate(prompt, params):
        alone = llm.score([(prompt, list(done.token_ids))])[0].logprobs
        assert done.score == pytest.approx(sum(alone), rel=1e-5)
