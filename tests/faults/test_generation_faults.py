"""What other BLOOM systems got wrong about generation, each shown not to happen here (docs/migrating.md lists them).

A fault that a test elsewhere excludes is not tested again.
"""

import inspect
import json
import re
import sys
from dataclasses import fields
from typing import Any

import pytest
import torch

from bloomery import LLM, SamplingParams, UsageError
from bloomery.cli import main
from bloomery.reference.engine import ReferenceLLM
from talker import EOS, build_talker

LIKELY_ENDS = {(EOS,): 20.0, (3,): 5.0}  # where one may come at all
LENGTHS = (3, 30, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_talker(tmp_path_factory.mktemp("faults") / "talker")


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BLOOMERY_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def prompts() -> list[list[int]]:
    """Of unequal lengths."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(4, 777, (length,), generator=generator).tolist() for length in LENGTHS]


def tokens(completions) -> list[tuple[int, ...]]:
    return [one.token_ids for one in completions]


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    out, err = capsys.readouterr()
    return code, out, err


def rows(capsys, *argv: str) -> list[dict[str, Any]]:
    code, out, err = run(capsys, "generate", *argv, "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


GIVEN: dict[str, tuple[tuple[str, ...], Any]] = {
    "max_new_tokens": (("7",), 7),
    "min_new_tokens": (("3",), 3),
    "max_length": (("60",), 60),
    "min_length": (("20",), 20),
    "max_time": (("9.5",), 9.5),
    "temperature": (("0.7",), 0.7),
    "top_h": (("0.4",), 0.4),
    "top_k": (("5",), 5),
    "top_p": (("0.9",), 0.9),
    "min_p": (("0.1",), 0.1),
    "typical_p": (("0.8",), 0.8),
    "epsilon_cutoff": (("0.01",), 0.01),
    "eta_cutoff": (("0.02",), 0.02),
    "repetition_penalty": (("1.3",), 1.3),
    "encoder_repetition_penalty": (("1.2",), 1.2),
    "frequency_penalty": (("0.5",), 0.5),
    "presence_penalty": (("-0.5",), -0.5),
    "no_repeat_ngram_size": (("3",), 3),
    "encoder_no_repeat_ngram_size": (("4",), 4),
    "sequence_bias": (("1,2=-5",), ("1,2=-5.0",)),
    "logit_bias": (("15=2.5",), ("15=2.5",)),
    "bad_words": (("cat", "a dog"), ("cat", "a dog")),
    "bad_words_ids": (("1,2", "3"), ("1,2", "3")),
    "suppress_tokens": (("5", "6"), (5, 6)),
    "begin_suppress_tokens": (("5",), (5,)),
    "forced_bos_token_id": (("9",), 9),
    "forced_eos_token_id": (("2", "3"), (2, 3)),
    "exponential_decay_length_penalty": (("[10, 1.5]",), (10, 1.5)),
    "remove_invalid_values": ((), True),
    "renormalize_logits": ((), True),
    "num_return_sequences": (("2",), 2),
    "best_of": (("4",), 4),
    "num_beams": (("3",), 3),
    "num_beam_groups": (("3",), 3),
    "diversity_penalty": (("0.7",), 0.7),
    "force_words": (("cat", "a dog|a mouse"), ("cat", "a dog|a mouse")),
    "force_words_ids": (("5,6|7",), ("5,6|7",)),
    "prompt_lookup_num_tokens": (("4",), 4),
    "max_matching_ngram_size": (("3",), 3),
    "num_assistant_tokens": (("6",), 6),
    "guidance_scale": (("1.5",), 1.5),
    "negative_prompt": (("the dog",), "the dog"),
    "negative_prompt_ids": (("5", "6"), (5, 6)),
    "penalty_alpha": (("0.6",), 0.6),
    "json_schema": (('{"type": "integer"}',), '{"type": "integer"}'),
    "json_object": ((), True),
    "regex": (("[a-z]+",), "[a-z]+"),
    "grammar": (('start: "a"',), 'start: "a"'),
    "prompt_logprobs": (("1",), 1),
    "length_penalty": (("0.5",), 0.5),
    "early_stopping": (("never",), "never"),
    "seed": (("11",), 11),
    "ignore_eos": ((), True),
    "stop_strings": (("a,b=c", "[x]", "\n\n"), ("a,b=c", "[x]", "\n\n")),
    "logprobs": (("2",), 2),
}
SAMPLES = ("top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "best_of")
NEEDS: dict[str, tuple[str, ...]] = dict.fromkeys((*SAMPLES, "num_return_sequences"), ("temperature",)) | {
    "length_penalty": ("num_beams",),
    "early_stopping": ("num_beams",),
    "force_words": ("num_beams",),
    "force_words_ids": ("num_beams",),
    "num_beam_groups": ("num_beams", "diversity_penalty"),
    "diversity_penalty": ("num_beams", "num_beam_groups"),
    "max_matching_ngram_size": ("prompt_lookup_num_tokens",),
    "negative_prompt": ("guidance_scale",),
    "negative_prompt_ids": ("guidance_scale",),
    "penalty_alpha": ("top_k",),
}


@pytest.mark.parametrize("name", GIVEN)
def test_every_option_of_the_command_line_reaches_the_request(capsys, folder, monkeypatch, name):
    """Elsewhere a temperature is parsed and never applied, a least length accepted and ignored."""
    asked = []

    def stream(self, prompts, params, *, truncate):
        asked.append(params)
        return iter(())

    monkeypatch.setattr(LLM, "stream", stream)
    names = [name, *NEEDS.get(name, ())]
    argv = []
    for one in names:
        values = GIVEN[one][0]
        option = f"--{one.replace('_', '-')}"
        argv += [f"{option}={value}" for value in values] or [option]
    assert run(capsys, "generate", "x", "--model", str(folder), "--json", *argv)[0] == 0
    assert asked == [SamplingParams(**{one: GIVEN[one][1] for one in names})]


def test_no_option_is_left_out_above():
    assert set(GIVEN) == {field.name for field in fields(SamplingParams)}


def test_what_the_command_line_asks_for_is_what_comes(capsys, folder, llm):
    options = {"temperature": 0.7, "top_p": 0.8, "seed": 3, "max_new_tokens": 15}
    argv = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    said = rows(capsys, "the cat", "--model", str(folder), *argv)
    wanted = tokens(llm.generate("the cat", SamplingParams(**options)))
    assert [tuple(row["token_ids"]) for row in said] == wanted
    for other in ({"temperature": 3.0}, {"top_p": 0.1}):
        assert tokens(llm.generate("the cat", SamplingParams(**options | other))) != wanted


@pytest.mark.parametrize("flag", ["--ignore-eos=perhaps", "--json=truthy", "--renormalize-logits=f."])
def test_a_flag_is_on_or_off_and_any_other_word_is_refused(capsys, folder, flag):
    code, out, err = run(capsys, "generate", "x", "--model", str(folder), flag)
    assert (code, out) == (2, "")
    assert "into bool" in err


def test_the_sampling_defaults_of_a_checkpoint_change_nothing_that_nobody_asked_for(folder, llm, tmp_path):
    """Elsewhere options without a flag come from the checkpoint, and top_k is 50 wherever a token is drawn."""
    path = build_talker(tmp_path / "talker")
    defaults = {"do_sample": True, "temperature": 1.9, "top_k": 2, "repetition_penalty": 3.0, "num_beams": 4}
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, 3], **defaults}))
    other = LLM(path)
    for params in (SamplingParams(max_new_tokens=20), SamplingParams(max_new_tokens=20, temperature=1.0, seed=1)):
        assert tokens(other.generate(prompts(), params)) == tokens(llm.generate(prompts(), params))


def test_a_least_length_counts_the_tokens_of_each_prompt_and_no_padding(folder, llm):
    """Elsewhere it counts the padded width, and so does nothing."""
    options = {"max_new_tokens": 30, "sequence_bias": LIKELY_ENDS, "min_length": 25}
    together = llm.generate(prompts(), SamplingParams(**options))
    assert tokens(together) == tokens(ReferenceLLM(folder).generate(prompts(), SamplingParams(**options)))
    for length, one in zip(LENGTHS, together, strict=True):
        ends = [place for place, token in enumerate(one.token_ids) if token in (EOS, 3)]
        assert ends, "a text that does not end shows nothing"
        assert length + ends[0] >= 25
    assert min(len(one.token_ids) for one in together) == 1  # behind the prompt that is long enough


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3}, {"temperature": 1.0, "seed": 5}])
def test_no_limit_that_is_not_reached_changes_a_token(folder, llm, strategy):
    """Elsewhere a longer maximum, another batch or no cache are other shapes, and may give another text."""
    wanted = tokens(llm.generate(prompts(), SamplingParams(max_new_tokens=12, ignore_eos=True, **strategy)))
    for limits in ({"max_seq_len": 64}, {"max_batch_size": 3}, {"max_seq_len": 200, "max_batch_size": 7}):
        other = LLM(folder, **limits)
        given = other.generate(prompts(), SamplingParams(max_new_tokens=12, ignore_eos=True, **strategy))
        assert tokens(given) == wanted
    if "num_beams" not in strategy:  # of a longer text others may be the best beams
        longer = llm.generate(prompts(), SamplingParams(max_new_tokens=40, ignore_eos=True, **strategy))
        assert [ids[:12] for ids in tokens(longer)] == wanted


def test_a_long_beam_search_needs_no_deep_recursion(llm):
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 90)
    try:
        done = llm.generate([5, 6], SamplingParams(num_beams=2, max_new_tokens=300, ignore_eos=True))
    finally:
        sys.setrecursionlimit(limit)
    assert len(done[0].token_ids) == 300


def test_the_texts_of_beams_are_streamed_like_any_other(llm):
    params = SamplingParams(num_beams=3, num_return_sequences=2, max_new_tokens=15)
    grown: dict[tuple[int, int], str] = {}
    for piece in llm.stream(["the cat", "a dog"], params):
        grown[piece.index, piece.choice] = grown.get((piece.index, piece.choice), "") + piece.text
    done = llm.generate(["the cat", "a dog"], params)
    assert [grown[index, choice] for index in range(2) for choice in range(2)] == [one.text for one in done]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--num-beams", "3", "--num-return-sequences", "2"],
        ["--temperature", "1", "--num-return-sequences", "3", "--seed", "1"],
    ],
)
def test_the_closing_line_counts_the_tokens_that_were_made(capsys, folder, options):
    """Not what was allowed, not what stands behind an end, not a row that only fills a batch, and every text of a
    prompt."""
    ends = ["--sequence-bias", f"{EOS}=5", "--sequence-bias", "3=4"]
    argv = ["the cat", "a", "the dog saw", "--model", str(folder), *ends, *options]
    code, out, err = run(capsys, "generate", *argv, "--max-new-tokens", "40", "--json", "--max-batch-size", "4")
    made = [len(json.loads(line)["token_ids"]) for line in out.splitlines()]
    assert code == 0
    assert int(re.search(r"(\d+) tokens", err)[1]) == sum(made)
    assert sum(made) < 40 * len(made), "no text has ended"


def test_the_same_prompt_twice_has_two_answers_and_none_is_lost(capsys, folder):
    argv = ["--model", str(folder), "--max-new-tokens", "4", "--max-batch-size", "2", "--temperature", "1"]
    said = rows(capsys, "the cat", "a", "the cat", "the cat", *argv)
    assert [row["prompt_ids"] == said[0]["prompt_ids"] for row in said] == [True, False, True, True]
    assert len({row["seed"] for row in said}) == 4


def test_a_prompt_is_text_and_nothing_in_it_is_run_or_replaced(capsys, folder, llm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = ['say "hi" $HOME', "`touch made` $(touch made); touch made", "a\\nb\ttab", "two\n\nlines"]
    said = rows(capsys, *texts, "--model", str(folder), "--max-new-tokens", "2")
    assert [row["prompt_ids"] for row in said] == [llm.encode(text) for text in texts]
    assert list(tmp_path.iterdir()) == []


def test_generating_writes_nothing_where_it_is_run(capsys, folder, tmp_path, monkeypatch):
    """Elsewhere debug dumps are deleted and written again, only to count graphs."""
    monkeypatch.chdir(tmp_path)
    for options in ([], ["--num-beams", "2"], ["--engine", "transformers"]):
        assert run(capsys, "generate", "the cat", "--model", str(folder), "--max-new-tokens", "3", *options)[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_step_computes_one_position_of_each_text_whatever_stands_before_it(llm, monkeypatch):
    """Elsewhere the whole text, or the whole buffer, is computed again for every token."""
    run_batch, ran = llm.engine.runner.run, []

    def counted(batch):
        ran.append([len(work.row.ids) for work in batch])
        return run_batch(batch)

    monkeypatch.setattr(llm.engine.runner, "run", counted)
    llm.generate(prompts()[1], SamplingParams(max_new_tokens=20, ignore_eos=True))
    assert ran == [[30]] + [[1]] * 19


def test_more_tokens_than_fit_are_refused_and_not_cut_short(capsys, folder):
    code, out, err = run(capsys, "generate", "the cat", "--model", str(folder), "--max-new-tokens", "600")
    assert (code, out) == (2, "")
    assert "max_new_tokens 600 leaves no room for a prompt in a context of 512 tokens" in err


def test_a_text_is_given_without_its_prompt_and_the_prompt_beside_it(llm):
    done = llm.generate("the cat", SamplingParams(max_new_tokens=8, ignore_eos=True))[0]
    assert list(done.prompt_ids) == llm.encode("the cat")
    assert done.text == llm.tokenizer.decode(done.token_ids)


def test_texts_are_scored_one_by_one_and_a_long_one_is_measured_in_tokens(llm):
    """Elsewhere there is one mean for all, and the limit counts texts."""
    pairs = [("the cat", " sat on the mat"), ("a dog", " saw"), ("the", " mat, and the dog")]
    together = llm.score(pairs)
    for pair, one in zip(pairs, together, strict=True):
        assert llm.score([pair])[0].token_ids == one.token_ids
        assert llm.score([pair])[0].logprobs == pytest.approx(one.logprobs, abs=1e-5)
    with pytest.raises(UsageError, match="600 tokens do not fit the context of 512"):
        llm.score([[7] * 600])
