"""Guidance against transformers: the same tokens; beams and several texts by its formula, computed anew each step."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor, LogitsProcessorList

from bloomery import LLM, BloomeryError, SamplingParams, UsageError
from bloomery.ops.random import uniform
from talker import EOS, build_talker

LENGTHS = (5, 70, 3, 64)
ENDS = [EOS, 3]
NEW = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_talker(tmp_path_factory.mktemp("guided") / "talker")


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder, max_batch_size=16)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def random_ids(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 777, (length,), generator=generator).tolist()


PROMPTS = [random_ids(length, 2) for length in LENGTHS]
NEGATIVE = random_ids(67, 3)


def theirs(model, prompt, options, negative=None, **more):
    """Tokens that transformers generates, up to the end of the text."""
    config = GenerationConfig(**({"max_new_tokens": NEW, "eos_token_id": ENDS, "pad_token_id": 0} | options))
    given = {} if negative is None else {"negative_prompt_ids": torch.tensor([negative])}
    out = model.generate(torch.tensor([prompt]), generation_config=config, **given, **more)
    return [until_end(row) for row in out[:, len(prompt) :].tolist()]


def until_end(row):
    ends = [place for place, token in enumerate(row) if token in ENDS]
    return tuple(row[: ends[0] + 1] if ends else row)


@pytest.mark.parametrize("negative", [None, NEGATIVE, NEGATIVE[:1]], ids=["last-token", "longer", "one-token"])
@pytest.mark.parametrize("scale", [1.5, 3.0, 0.0, -1.0])
def test_guided_greedy_tokens_equal_transformers_in_any_batch(llm, model, scale, negative):
    """All prompts at once, unequal as they are, against transformers with one at a time."""
    options = {"guidance_scale": scale}
    together = llm.generate(PROMPTS, SamplingParams(max_new_tokens=NEW, negative_prompt_ids=negative or (), **options))
    plain = llm.generate(PROMPTS, SamplingParams(max_new_tokens=NEW))
    for prompt, done in zip(PROMPTS, together, strict=True):
        assert [done.token_ids] == theirs(model, prompt, options | {"do_sample": False}, negative)
    assert [one.token_ids for one in together] != [one.token_ids for one in plain]
    assert llm.engine.idle


OPTIONS = [
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},  # what is divided must be guided before
    {"sequence_bias": {(EOS,): 3.0, (7,): 6.0}, "min_new_tokens": 4},
]


@pytest.mark.parametrize("options", OPTIONS, ids="-".join)
def test_guidance_is_the_first_of_all_processors(llm, model, options):
    together = llm.generate(
        PROMPTS, SamplingParams(max_new_tokens=NEW, guidance_scale=2.0, negative_prompt_ids=NEGATIVE, **options)
    )
    for prompt, done in zip(PROMPTS, together, strict=True):
        wanted = theirs(model, prompt, options | {"guidance_scale": 2.0, "do_sample": False}, NEGATIVE)
        assert [done.token_ids] == wanted


def test_guided_sampling_equals_transformers_where_the_same_numbers_are_drawn(llm, model, monkeypatch):
    options = {"guidance_scale": 1.7, "temperature": 0.8, "top_p": 0.9}
    together = llm.generate(
        PROMPTS, SamplingParams(max_new_tokens=NEW, seed=5, negative_prompt_ids=NEGATIVE, **options)
    )
    for prompt, done in zip(PROMPTS, together, strict=True):
        places = iter(range(NEW))

        def multinomial(odds, num_samples, places=places):
            cdf = odds.double().cumsum(-1)
            return torch.searchsorted(cdf, uniform(5, next(places), 0) * cdf[:, -1:], right=True)

        monkeypatch.setattr(torch, "multinomial", multinomial)
        wanted = theirs(model, prompt, options | {"do_sample": True, "top_k": 0}, NEGATIVE)
        assert [done.token_ids] == wanted


def test_several_guided_texts_are_each_guided_by_its_own_shadow(llm):
    """Text by text: a prefix of tokens given as prompt goes on as the text does, where both prompts have it."""
    options = {"temperature": 1.0, "seed": 9, "guidance_scale": 2.0}
    several = llm.generate(
        PROMPTS,
        SamplingParams(
            max_new_tokens=NEW, num_return_sequences=3, ignore_eos=True, negative_prompt_ids=NEGATIVE, **options
        ),
    )
    alone = llm.generate(
        PROMPTS, SamplingParams(max_new_tokens=NEW, ignore_eos=True, negative_prompt_ids=NEGATIVE, **options)
    )
    assert [one.token_ids for one in several if one.choice == 0] == [one.token_ids for one in alone]
    for one in several:
        for place, token in enumerate(one.token_ids):
            said = one.token_ids[:place]
            mine, shadow = (llm.logits([*before, *said])[-1].log_softmax(-1) for before in (one.prompt_ids, NEGATIVE))
            odds = (2.0 * (mine - shadow) + shadow).double().softmax(-1).cumsum(-1)
            u = uniform(9, place, one.choice) * float(odds[-1])
            assert (0.0 if token == 0 else float(odds[token - 1])) - 1e-4 <= u <= float(odds[token]) + 1e-4


class Anew(LogitsProcessor):
    """The formula of transformers, whose own cache does not follow the beams: the other prompt's text, run whole."""

    def __init__(self, model, prompt, scale):
        self.model, self.length, self.scale = model, len(prompt), scale

    def __call__(self, input_ids, scores):
        said = input_ids[:, self.length :]
        other = torch.tensor([NEGATIVE]).expand(len(said), -1)
        unconditional = self.model(torch.cat([other, said], 1)).logits[:, -1].log_softmax(-1)
        return self.scale * (scores.log_softmax(-1) - unconditional) + unconditional


@pytest.mark.parametrize(
    "options", [{"num_beams": 4, "num_return_sequences": 2}, {"num_beams": 3, "length_penalty": 0.0}], ids="-".join
)
def test_guided_beams_equal_transformers_with_each_beams_shadow_run_anew(llm, model, options):
    params = SamplingParams(max_new_tokens=NEW, guidance_scale=1.8, negative_prompt_ids=NEGATIVE, **options)
    together = llm.generate(PROMPTS, params)
    count = options.get("num_return_sequences", 1)
    for index, prompt in enumerate(PROMPTS):
        wanted = theirs(
            model,
            prompt,
            options | {"do_sample": False},
            logits_processor=LogitsProcessorList([Anew(model, prompt, 1.8)]),
        )
        assert [one.token_ids for one in together[count * index : count * (index + 1)]] == wanted
    assert llm.engine.idle


def test_a_negative_prompt_may_be_text(llm):
    options = {"max_new_tokens": 12, "guidance_scale": 2.0}
    said = llm.generate("the cat", SamplingParams(negative_prompt="the dog sat", **options))
    ids = llm.generate("the cat", SamplingParams(negative_prompt_ids=llm.encode("the dog sat"), **options))
    assert said[0].token_ids == ids[0].token_ids


def test_guided_texts_are_the_same_in_small_steps_on_few_seats_and_after_giving_way(llm, folder):
    params = SamplingParams(
        max_new_tokens=NEW, guidance_scale=2.0, temperature=1.0, seed=3, negative_prompt_ids=NEGATIVE
    )
    small, narrow = LLM(folder, max_batch_size=2), LLM(folder, max_batch_size=8, cache_positions=6 * 64)
    small.engine.scheduler.max_step_tokens = 7
    wanted = [one.token_ids for one in llm.generate(PROMPTS, params)]
    assert [one.token_ids for one in small.generate(PROMPTS, params)] == wanted
    assert [one.token_ids for one in narrow.generate(PROMPTS, params)] == wanted
    assert narrow.engine.scheduler.preempted


def test_reported_logprobs_are_the_models_own_and_not_guided(llm, model):
    done = llm.generate(PROMPTS[0], SamplingParams(max_new_tokens=8, guidance_scale=2.0, logprobs=2))[0]
    with torch.inference_mode():
        logits = model(torch.tensor([[*PROMPTS[0], *done.token_ids]])).logits[0]
    logprobs = logits.log_softmax(-1)[len(PROMPTS[0]) - 1 : -1]
    for place, token in enumerate(done.logprobs):
        assert token.logprob == pytest.approx(float(logprobs[place][token.id]), abs=1e-4)
        assert [chosen for chosen, _ in token.top] == logprobs[place].topk(2).indices.tolist()


def test_a_shadow_without_numbers_is_an_error_of_its_own(folder):
    broken = LLM(folder)
    broken.decoder.embed.tokens.weight.data[600] = torch.nan
    with pytest.raises(BloomeryError, match=r"not finite behind the negative prompt: try dtype float32"):
        broken.generate([5, 6, 7], SamplingParams(guidance_scale=2.0, negative_prompt_ids=[600], max_new_tokens=3))
    assert broken.engine.idle


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"negative_prompt": "a"}, "negative_prompt would have no effect without guidance: set guidance_scale"),
        ({"negative_prompt_ids": [5], "guidance_scale": 1}, "negative_prompt_ids would have no effect without"),
        ({"negative_prompt": "a", "negative_prompt_ids": [5], "guidance_scale": 2}, "drop one of them"),
        ({"negative_prompt": 5, "guidance_scale": 2}, "negative_prompt is 5: give a text"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf: give a number from -1e6 to 1e6"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan: give a number from -1e6 to 1e6; 1 is no guidance"),
        ({"guidance_scale": 1e30}, "guidance_scale is 1e\\+30: give a number from -1e6 to 1e6"),
    ],
)
def test_what_makes_no_sense_together_is_refused(options, said):
    with pytest.raises(UsageError, match=said):
        SamplingParams(**options)


def test_a_negative_prompt_that_cannot_run_is_refused(llm):
    for options, said in (
        ({"negative_prompt": ""}, "negative_prompt: the prompt is empty"),
        ({"negative_prompt_ids": [777]}, "negative_prompt_ids names token 777, which is outside the model's vocab"),
        ({"negative_prompt_ids": [5] * 500}, "the negative prompt has 500 tokens, and 20 new ones leave room for 492"),
    ):
        with pytest.raises(UsageError, match=said):
            llm.generate("the", SamplingParams(guidance_scale=2, max_new_tokens=NEW, **options))
    one = LLM(llm.folder.path, max_batch_size=1)
    with pytest.raises(UsageError, match="a request of 2 sequences at once does not fit a batch of 1"):
        one.generate("the", SamplingParams(guidance_scale=2))
