"""A model with an adapter computes what peft computes on transformers: the same logits, the same tokens."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapted import ANY_BIAS, KINDS, LOW_RANK_BIAS, TIED, Adapted, kind
from bloomery import LLM, SamplingParams
from drive import TOLERANCE, assert_parity
from tiny import SHAPES, Tiny

BASES = ("bloom-6-heads", "gpt2-tanh", "gpt2-relu-untied", "llama-grouped-scaled", "llama-biased-linear")
"""Tied and untied heads, matrices of either orientation, fused and separate q, k and v, shared keys, no biases."""
VIRTUAL = {"prompt": 70, "one-prompt-token": 1, "p-tuning": 7, "prefix": 9, "projected-prefix": 64}
STEPS = 24
LENGTHS = (12, 1, 57, 64, 130)
OTHERS = sorted({shape.family for shape in SHAPES} - {"bloom", "gpt2", "llama"})
Make = Callable[[str, str], Adapted]


def cases() -> list[tuple[str, str]]:
    """Every kind of adapter on every base that it is possible on."""
    return [
        (base, name)
        for base in BASES
        for name in KINDS
        if (name != LOW_RANK_BIAS or base.split("-")[0] in ANY_BIAS or "biased" in base)
        and (name not in TIED or base == "llama-grouped-scaled")
    ]


@pytest.fixture(scope="module")
def make(tiny: Callable[[str], Tiny], tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[tuple[str, str], Adapted] = {}

    def get(base: str, name: str) -> Adapted:
        if (base, name) not in made:
            made[base, name] = kind(tiny(base), tmp_path_factory.mktemp("adapter"), name)
        return made[base, name]

    return get


def llm(adapted: Adapted, **options: int) -> LLM:
    return LLM(adapted.tiny.path, adapter=adapted.path, dtype="float32", **options)


def assert_clear(adapted: Adapted, ids: list[int], tokens: list[int]) -> None:
    """The reference chose each token by a margin that rounding cannot bridge."""
    best, second = adapted.logits(ids + tokens)[len(ids) - 1 : -1].topk(2).values.unbind(-1)
    assert (best - second).min() >= 1e-4


@pytest.mark.parametrize(("base", "name"), cases())
def test_logits_equal_peft(make: Make, base: str, name: str) -> None:
    adapted = make(base, name)
    ids = adapted.tiny.prompt(75)
    expected = adapted.logits(ids)
    assert (expected - adapted.tiny.logits(ids)).abs().max() > 0.5  # the adapter matters
    assert_parity(llm(adapted).logits(ids), expected)


@pytest.mark.parametrize("name", ["lora", "dora-embedding", "tokens", "prompt", "prefix"])
@pytest.mark.parametrize("base", ["bloom-6-heads", "gpt2-tanh", "llama-grouped-scaled"])
def test_greedy_tokens_equal_peft(make: Make, base: str, name: str) -> None:
    """Texts of unlike lengths on three seats, so that some wait and blocks change owners."""
    adapted = make(base, name)
    prompts = [adapted.tiny.prompt(length) for length in LENGTHS]
    expected = [adapted.greedy(ids, STEPS) for ids in prompts]
    for ids, tokens in zip(prompts, expected, strict=True):
        assert_clear(adapted, ids, tokens)
    params = SamplingParams(max_new_tokens=STEPS, ignore_eos=True)
    done = llm(adapted, max_batch_size=3).generate(prompts, params)
    assert [list(one.token_ids) for one in done] == expected
    assert [list(one.prompt_ids) for one in done] == prompts


@pytest.mark.parametrize("name", ["lora", "prompt", "prefix"])
def test_scores_equal_peft(make: Make, name: str) -> None:
    adapted = make("bloom-6-heads", name)
    ids = adapted.tiny.prompt(90)
    logits = adapted.logits(ids)
    expected = logits.log_softmax(-1)[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    allowed = 2 * TOLERANCE * max(1, float(logits.abs().max()))  # a logit and the sum of all may be off
    model = llm(adapted)
    score = model.score([ids])[0]
    assert score.token_ids == tuple(ids[1:])
    assert torch.allclose(torch.tensor(score.logprobs), expected, rtol=0, atol=allowed)
    pair = model.score([(ids[:40], ids[40:])])[0]
    assert torch.allclose(torch.tensor(pair.logprobs), expected[39:], rtol=0, atol=allowed)


@pytest.mark.parametrize("name", VIRTUAL)
@pytest.mark.parametrize("chunk", [7, 64])
def test_text_in_chunks_after_virtual_tokens_equals_peft(make: Make, name: str, chunk: int) -> None:
    adapted = make("llama-grouped-scaled", name)
    ids = adapted.tiny.prompt(150)
    model = llm(adapted)
    model.engine.scheduler.max_step_tokens = chunk
    assert_parity(model.logits(ids), adapted.logits(ids))


def test_hidden_states_are_those_of_the_text(make: Make) -> None:
    adapted = make("bloom-6-heads", "prompt")
    ids = adapted.tiny.prompt(30)
    model = llm(adapted)
    hidden = model.hidden(ids)
    assert hidden.shape == (30, 96)
    assert_parity(model.decoder.logits(hidden), adapted.logits(ids))


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "prompt", "prefix"])
@pytest.mark.parametrize("family", OTHERS)
def test_other_families_equal_peft(tiny: Callable[[str], Tiny], tmp_path: Path, family: str, name: str) -> None:
    base = next(shape for shape in SHAPES if shape.family == family)
    if name == "prefix" and family == "falcon":
        base = next(shape for shape in SHAPES if shape.name == "falcon-rw-like")  # peft fails where keys are shared
    adapted = kind(tiny(base.name), tmp_path, name)
    ids = adapted.tiny.prompt(75)
    assert_parity(llm(adapted).logits(ids), adapted.logits(ids))
