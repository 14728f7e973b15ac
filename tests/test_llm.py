"""LLM against transformers, and against itself: alone, batched, chunked, streamed, queued."""

import json
import shutil
import subprocess
import sys
from threading import Thread
from time import sleep

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bloomery import LLM, BloomeryError, CheckpointError, SamplingParams, UsageError
from bloomery.engine.request import Request
from bloomery.engine.strategies.sampling import Sampling
from talker import EOS, build_talker

LENGTHS = (5, 70, 3, 1, 300, 64, 65)
GREEDY = SamplingParams(max_new_tokens=24, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=24, ignore_eos=True, temperature=0.9, top_p=0.95, top_k=50, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_talker(tmp_path_factory.mktemp("llm") / "talker")


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder, max_batch_size=3)


@pytest.fixture(scope="module")
def theirs(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def prompts(llm):
    generator = torch.Generator().manual_seed(0)
    size = llm.folder.config.vocab_size
    return [torch.randint(4, size, (length,), generator=generator).tolist() for length in LENGTHS]


def tokens(completions):
    return [completion.token_ids for completion in completions]


@torch.inference_mode()
def reference_logits(theirs, ids):
    return theirs(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_batched_and_queued_equals_alone(llm, params):
    """Seven prompts of unlike lengths on three seats: each gets the tokens that it gets alone."""
    together = llm.generate(prompts(llm), params)
    assert tokens(together) == [llm.generate(prompt, params)[0].token_ids for prompt in prompts(llm)]
    assert llm.engine.idle


def test_greedy_tokens_equal_transformers(llm, theirs):
    for prompt, completion in zip(prompts(llm), llm.generate(prompts(llm), GREEDY), strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert list(completion.token_ids) == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("chunk", [1, 7, 64, 65])
def test_chunked_equals_whole(folder, llm, chunk):
    small = LLM(folder, max_batch_size=3)
    small.engine.scheduler.max_step_tokens = chunk
    few = prompts(llm)[:3]
    assert tokens(small.generate(few, GREEDY)) == tokens(llm.generate(few, GREEDY))
    whole, chunked = llm.logits(few[1]), small.logits(few[1])
    assert (whole - chunked).abs().max() <= 1e-5 * max(1, whole.abs().max())


def test_a_seed_fixes_the_tokens_and_an_unset_one_is_reported(llm):
    prompt = prompts(llm)[0]
    free = SamplingParams(max_new_tokens=24, temperature=1.0, ignore_eos=True)
    first, second = llm.generate([prompt, prompt], free)
    assert first.token_ids != second.token_ids
    again = llm.generate(prompt, SamplingParams(max_new_tokens=24, temperature=1.0, ignore_eos=True, seed=first.seed))
    assert again[0].token_ids == first.token_ids


def test_streamed_pieces_add_up_to_the_completion(llm):
    params = SamplingParams(max_new_tokens=40, temperature=1.0, seed=1, ignore_eos=True)
    pieces = list(llm.stream("the cat", params))
    completion = llm.generate("the cat", params)[0]
    assert "".join(piece.text for piece in pieces) == completion.text == pieces[-1].completion.text
    assert completion.text == llm.tokenizer.decode(completion.token_ids)
    assert sum((piece.token_ids for piece in pieces), ()) == completion.token_ids


def test_streams_that_are_open_at_once_do_not_take_each_others_text(llm):
    params = [SamplingParams(max_new_tokens=12, temperature=1.0, seed=seed, ignore_eos=True) for seed in range(4)]
    alone = [llm.generate("the dog", one)[0].text for one in params]
    streams = [llm.stream("the dog", one) for one in params]
    texts = [""] * 4
    live = set(range(4))
    while live:
        for n in sorted(live):
            piece = next(streams[n], None)
            if piece is None:
                live.discard(n)
            else:
                texts[n] += piece.text
    assert texts == alone


def test_a_closed_stream_frees_its_blocks(llm):
    before = sorted(llm.engine.scheduler.pool.free)
    stream = llm.stream(prompts(llm)[:5], GREEDY)
    next(stream)
    assert not llm.engine.idle
    stream.close()
    assert llm.engine.idle
    assert sorted(llm.engine.scheduler.pool.free) == before


def eos_after(folder, tmp_path, eos_ids):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_ids}))
    return LLM(copy, max_batch_size=4)


def test_each_row_ends_at_its_own_end_of_sequence(folder, llm, tmp_path):
    few = prompts(llm)[:3]
    free = tokens(llm.generate(few, GREEDY))
    ends = [free[0][4], free[1][9]]  # several ids end a text, as in Llama 3
    completions = eos_after(folder, tmp_path, ends).generate(few, SamplingParams(max_new_tokens=24))
    for completion, whole in zip(completions, free, strict=True):
        stops = [place for place, token in enumerate(whole) if token in ends]
        length = stops[0] + 1 if stops else 24
        assert completion.token_ids == whole[:length]
        assert completion.finish_reason == ("stop" if stops else "length")


def test_min_new_tokens_puts_the_end_off_and_ignore_eos_passes_it(folder, llm, tmp_path):
    prompt = prompts(llm)[0]
    free = llm.generate(prompt, GREEDY)[0].token_ids
    ending = eos_after(folder, tmp_path, free[4])
    assert len(ending.generate(prompt, SamplingParams(max_new_tokens=24))[0].token_ids) == free.index(free[4]) + 1
    late = ending.generate(prompt, SamplingParams(max_new_tokens=24, min_new_tokens=10))[0]
    assert len(late.token_ids) > 10
    assert free[4] not in late.token_ids[:10]
    assert ending.generate(prompt, GREEDY)[0].token_ids == free


def test_a_stop_string_ends_the_text_before_it(llm):
    params = SamplingParams(max_new_tokens=60, temperature=1.0, seed=5, ignore_eos=True)
    text = llm.generate("the cat", params)[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    cut = SamplingParams(max_new_tokens=60, temperature=1.0, seed=5, ignore_eos=True, stop_strings=(stop,))
    done = llm.generate("the cat", cut)[0]
    assert done.text == text[: text.index(stop)]
    assert done.finish_reason == "stop"
    assert "".join(piece.text for piece in llm.stream("the cat", cut)) == done.text


def test_scores_equal_transformers_log_probabilities(llm, theirs):
    texts = prompts(llm)
    pair = (texts[0], texts[1])
    scores = llm.score([texts[1], texts[4], pair])
    for ids, first, score in ((texts[1], 1, scores[0]), (texts[4], 1, scores[1]), (texts[0] + texts[1], 5, scores[2])):
        logprobs = reference_logits(theirs, ids).log_softmax(-1)[first - 1 : -1]
        expected = logprobs.gather(-1, torch.tensor(ids[first:])[:, None]).flatten()
        torch.testing.assert_close(torch.tensor(score.logprobs), expected, atol=1e-4, rtol=1e-5)
        assert score.token_ids == tuple(ids[first:])
        assert score.greedy == bool((logprobs.argmax(-1) == torch.tensor(ids[first:])).all())


def test_a_greedy_continuation_scores_as_greedy(llm):
    prompt = prompts(llm)[0]
    done = llm.generate(prompt, GREEDY)[0]
    assert llm.score([(prompt, list(done.token_ids))])[0].greedy


def test_a_text_pair_is_cut_where_the_whole_texts_tokens_leave_the_contexts(llm):
    score = llm.score([("the cat sat", " on the mat")])[0]
    whole = llm.tokenizer.encode("the cat sat on the mat")
    assert score.token_ids == tuple(whole[len(llm.tokenizer.encode("the cat sat")) :])


def test_logprobs_of_generated_tokens_equal_transformers(llm, theirs):
    prompt = prompts(llm)[0]
    params = SamplingParams(max_new_tokens=8, temperature=0.7, top_k=20, seed=2, ignore_eos=True, logprobs=3)
    done = llm.generate(prompt, params)[0]
    logprobs = reference_logits(theirs, prompt + list(done.token_ids)).log_softmax(-1)[len(prompt) - 1 : -1]
    for place, token in enumerate(done.logprobs):
        assert token.id == done.token_ids[place]
        assert token.logprob == pytest.approx(float(logprobs[place][token.id]), abs=1e-4)
        assert [id for id, _ in token.top] == logprobs[place].topk(3).indices.tolist()


def test_logits_and_hidden_give_every_position(llm, theirs):
    ids = prompts(llm)[4]
    expected = reference_logits(theirs, ids)
    assert (llm.logits(ids) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    with torch.inference_mode():
        hidden = theirs.transformer(torch.tensor([ids])).last_hidden_state[0]
    assert (llm.hidden(ids) - hidden).abs().max() <= 1e-5 * max(1, hidden.abs().max())


def test_no_more_than_64_rows_of_logits_exist_at_once(llm, monkeypatch):
    largest = []
    decode = type(llm.decoder).logits
    monkeypatch.setattr(type(llm.decoder), "logits", lambda self, h: largest.append(len(h)) or decode(self, h))
    llm.score([prompts(llm)[4]])
    assert max(largest) <= 64
    largest.clear()
    llm.generate(prompts(llm)[4], GREEDY)
    assert set(largest) == {1}  # prompt tokens never meet the head


def test_text_ids_equal_transformers_tokenizer(folder, llm):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in ("the cat sat", "  spaces  and\n\nlines", "猫 🐈 naïve", "1,234.5!"):
        assert llm.tokenizer.encode(text) == tokenizer(text).input_ids


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers_or_cut_on_request(llm):
    long = [7] * 600
    with pytest.raises(UsageError, match=r"600 tokens.*room for 488.*context of 512"):
        llm.generate(long, GREEDY)
    ids = list(range(4, 304)) * 2
    left, right = (llm.generate(ids, GREEDY, truncate=side)[0] for side in ("left", "right"))
    assert (list(left.prompt_ids), list(right.prompt_ids)) == (ids[-488:], ids[:488])


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ("", GREEDY, "prompt is empty"),
        ([], GREEDY, "prompt is empty"),
        ([5, 777], GREEDY, "token id 777 is outside the model's vocabulary of 777"),
        ([-1], GREEDY, "token id -1"),
        ("the", SamplingParams(max_new_tokens=512), "max_new_tokens 512 leaves no room"),
        ("the \ud800", GREEDY, "not valid Unicode at character 4"),
    ],
)
def test_a_wrong_prompt_is_refused_before_any_other_runs(llm, prompt, params, message):
    with pytest.raises(UsageError, match=message):
        llm.stream(["the cat", prompt] if prompt != [] else [[5], prompt], params)
    assert llm.engine.idle


def test_nothing_to_score_is_refused(llm):
    with pytest.raises(UsageError, match="nothing to score"):
        llm.score([[5]])


def test_a_folder_without_tokenizer_works_on_ids(folder, tmp_path, llm):
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "tokenizer.json").unlink()
    silent = LLM(bare)
    ids = prompts(llm)[0]
    assert silent.generate(ids, GREEDY)[0].token_ids == llm.generate(ids, GREEDY)[0].token_ids
    with pytest.raises(UsageError, match=r"no tokenizer\.json: give token ids"):
        silent.generate("text")
    with pytest.raises(UsageError, match="stop strings need one"):
        silent.generate(ids, SamplingParams(stop_strings=("x",)))


def test_a_model_that_gives_nan_says_so_and_the_engine_goes_on(folder):
    broken = LLM(folder)
    weight = broken.decoder.blocks[0].mlp.up.bias
    kept = weight.clone()
    weight[3] = torch.nan
    with pytest.raises(BloomeryError, match="not finite at generated token 0"):
        broken.generate([[5, 6, 7]], GREEDY)
    weight.copy_(kept)
    expected = LLM(folder).generate([[5, 6, 7]], GREEDY)
    assert tokens(broken.generate([[5, 6, 7]], GREEDY)) == tokens(expected)  # no NaN left in a block


def test_wrong_arguments_name_their_limits(folder):
    with pytest.raises(UsageError, match="give 2 to 512"):
        LLM(folder, max_seq_len=513)
    with pytest.raises(UsageError, match="max_batch_size is 0"):
        LLM(folder, max_batch_size=0)
    with pytest.raises(UsageError, match="dtype 'int3' is not one of: auto, float32"):
        LLM(folder, dtype="int3")
    with pytest.raises(UsageError, match="device 'gpu' cannot be used here"):
        LLM(folder, device="gpu")
    with pytest.raises(UsageError, match=r"no model 'dicken': did you mean 'dickens'\?"):
        LLM("dicken")


def test_a_cache_that_no_memory_holds_is_refused_with_its_size(folder):
    with pytest.raises(UsageError, match=r"GB for keys and values of .* lower max_batch_size or max_seq_len"):
        LLM(folder, max_batch_size=10**9)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_fp32(folder, llm, dtype):
    exact, near = llm.logits(prompts(llm)[4]), LLM(folder, dtype=dtype).logits(prompts(llm)[4])
    assert (near - exact).abs().mean() <= 0.05 * exact.std()


def test_a_damaged_tokenizer_is_refused(folder, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    (bad / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is no tokenizer"):
        LLM(bad).generate("the cat")


def test_a_tokenizers_own_truncation_and_padding_are_not_applied(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    raw = json.loads((copy / "tokenizer.json").read_text())
    raw["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (copy / "tokenizer.json").write_text(json.dumps(raw))
    assert len(LLM(copy).tokenizer.encode("the cat sat on the mat")) > 3


def test_end_ids_come_from_the_generation_config(llm):
    assert llm.folder.eos_ids == (EOS, 3)


@pytest.mark.parametrize("hold", [tuple, np.array, torch.tensor, lambda ids: list(np.array(ids))])
def test_ids_held_by_numpy_or_torch_are_ids(llm, hold):
    done = llm.generate(hold([5, 6, 7]), GREEDY)
    assert tokens(done) == tokens(llm.generate([5, 6, 7], GREEDY))
    assert all(type(token) is int for token in done[0].prompt_ids)


@pytest.mark.parametrize("wrong", [None, 5, [None], [[5.5]], ["the", 5], [["the", "cat"]], b"the cat"])
def test_what_is_no_prompt_is_refused(llm, wrong):
    with pytest.raises(UsageError, match="prompt"):
        llm.generate(wrong, GREEDY)
    with pytest.raises(UsageError, match=r"prompt|nothing to score"):
        llm.score(wrong)
    assert llm.engine.idle


def test_a_single_text_is_scored_whole(llm):
    assert llm.score("the cat sat") == llm.score(["the cat sat"])


def test_a_side_that_does_not_exist_is_refused(llm):
    with pytest.raises(UsageError, match="truncate is 'up': give 'left' or 'right'"):
        llm.generate([7] * 600, GREEDY, truncate="up")


def test_threads_that_share_a_model_get_the_tokens_they_get_alone(llm):
    few = prompts(llm)[:4]
    alone = tokens(llm.generate(few, GREEDY))
    got = {}
    threads = [Thread(target=lambda n=n: got.update({n: llm.generate(few[n], GREEDY)[0].token_ids})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got.get(n) for n in range(4)] == alone
    assert llm.engine.idle


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_model_in_which_every_token_ends_a_text_cannot_put_the_end_off(folder, tmp_path, temperature):
    ending = eos_after(folder, tmp_path, list(range(777)))
    params = SamplingParams(min_new_tokens=2, temperature=temperature)
    with pytest.raises(BloomeryError, match="no token is left to choose"):
        ending.generate("the cat", params)


@pytest.mark.parametrize("eos", ["2", 2.0, True, [[2]], {"a": 1}])
def test_an_end_of_sequence_that_is_no_id_is_refused(folder, tmp_path, eos):
    with pytest.raises(CheckpointError, match="eos_token_id"):
        eos_after(folder, tmp_path, eos)


def test_a_device_that_computes_nothing_or_a_model_without_name_is_refused(folder):
    with pytest.raises(UsageError, match="device 'meta' cannot be used here"):
        LLM(folder, device="meta")
    for name in ("", "~nobody-of-this-name/model"):
        with pytest.raises(UsageError, match=f"no model '{name}'"):
            LLM(name)


def test_running_a_model_needs_few_packages():
    """A GPU machine may have torch, numpy, safetensors, tokenizers and rich, and no way to install more."""
    look = "import sys, bloomery.llm; print(*{name.partition('.')[0] for name in sys.modules}, *sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.split()
    assert "torch._dynamo" not in loaded  # the compiler: 800 modules, 70 MB
    assert not {"cyclopts", "tomli_w", "transformers", "huggingface_hub", "jinja2"} & set(loaded)


OPTIONS = [
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3},
    {"encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2},
    {"sequence_bias": {(7,): 3.0, (100, 101): -4.0, (60,): 5.0}, "repetition_penalty": 2.0},
    {"suppress_tokens": list(range(300, 500)), "begin_suppress_tokens": list(range(100))},
    {"min_length": 20, "forced_eos_token_id": 9, "bad_words_ids": [[5, 6], [40]]},
    {"min_new_tokens": 12, "exponential_decay_length_penalty": (14, 1.3)},
    {"exponential_decay_length_penalty": (3, 1.3), "remove_invalid_values": True},
    {"no_repeat_ngram_size": 1, "renormalize_logits": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids="-".join)
def test_options_give_the_tokens_that_transformers_gives(llm, theirs, options):
    """Several prompts at once, against one at a time; texts end at the model's ends."""
    few = prompts(llm)[:4]
    free = llm.generate(few, SamplingParams(max_new_tokens=24))
    changed = 0
    for prompt, plain, done in zip(
        few, free, llm.generate(few, SamplingParams(max_new_tokens=24, **options)), strict=True
    ):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=[EOS, 3],
            pad_token_id=0,
            **options,
        )
        assert list(done.token_ids) == expected[0, len(prompt) :].tolist()
        changed += done.token_ids != plain.token_ids
    assert changed, "the options do nothing here"


def test_a_bos_is_forced_behind_a_single_token(llm, theirs):
    ids = torch.tensor([[5]])
    options = {"forced_bos_token_id": 77, "begin_suppress_tokens": [9]}
    expected = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0, **options
    )
    done = llm.generate([5], SamplingParams(max_new_tokens=6, **options))[0]
    assert list(done.token_ids) == expected[0, 1:].tolist()
    assert done.token_ids[0] == 77


def test_options_look_at_real_tokens_only_however_requests_are_batched(folder, llm):
    params = SamplingParams(
        max_new_tokens=20, temperature=0.9, seed=4, frequency_penalty=1.0, presence_penalty=0.5, no_repeat_ngram_size=2
    )
    wanted = [llm.generate(prompt, params)[0].token_ids for prompt in prompts(llm)]
    small = LLM(folder, max_batch_size=3)
    small.engine.scheduler.max_step_tokens = 7
    assert tokens(small.generate(prompts(llm), params)) == wanted


def test_max_length_counts_the_prompt(llm):
    few = prompts(llm)[:2]  # 5 and 70 tokens
    done = llm.generate(few, SamplingParams(max_length=80, ignore_eos=True))
    assert [len(one.token_ids) for one in done] == [75, 10]
    with pytest.raises(UsageError, match="the prompt has 70 tokens, and max_length 70 leaves room for 69"):
        llm.generate(few, SamplingParams(max_length=70))
    cut = llm.generate(few[1], SamplingParams(max_length=70, ignore_eos=True), truncate="left")[0]
    assert (list(cut.prompt_ids), len(cut.token_ids)) == (few[1][1:], 1)
    with pytest.raises(UsageError, match="max_length 513 is beyond the context of 512"):
        llm.generate(few, SamplingParams(max_length=513))


def test_max_time_ends_a_text_by_its_own_clock(llm):
    """Two seconds a look at the clock: one at the beginning, one behind each token."""
    seconds = iter(range(0, 1000, 2))
    strategy = Sampling([5, 6, 7], SamplingParams(max_time=5, ignore_eos=True), clock=lambda: next(seconds))
    llm._turns.run([Request(strategy)])
    assert len(strategy.texts[0].continuation) == 3  # after 2, 4 and 6 seconds
    assert llm.generate([5, 6, 7], SamplingParams(max_time=1e-9))[0].finish_reason == "length"


def test_bad_words_are_forbidden_behind_a_space_and_without_one(llm):
    """A model that is pushed to say a word in both ways, and nothing else, does not say it."""
    written = [llm.tokenizer.encode(text) for text in ("cat", " cat")]
    pushed = {(token,): 30.0 for ids in written for token in ids}
    options = {"max_new_tokens": 60, "temperature": 1.0, "seed": 5, "ignore_eos": True, "sequence_bias": pushed}

    def said(**more):
        ids = llm.generate("the", SamplingParams(**options, **more))[0].token_ids
        return [any(ids[at : at + len(word)] == tuple(word) for at in range(len(ids))) for word in written]

    assert said() == [True, True]
    assert said(bad_words=["cat"]) == said(bad_words=[" cat"]) == [False, False]


def test_bad_words_without_a_tokenizer_and_tokens_that_do_not_exist_are_refused(llm, folder, tmp_path):
    with pytest.raises(UsageError, match="suppress_tokens names token 777, which is outside the model's vocabulary"):
        llm.generate("the", SamplingParams(suppress_tokens=[777]))
    with pytest.raises(UsageError, match="top_k is 778, but the model has 777 tokens"):
        llm.generate("the", SamplingParams(top_k=778, temperature=1))
    silent = tmp_path / "silent"
    shutil.copytree(folder, silent)
    (silent / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match="give bad_words_ids instead of bad_words"):
        LLM(silent).generate([5], SamplingParams(bad_words=["cat"]))
    assert llm.engine.idle


def test_options_that_leave_no_token_are_named(llm):
    params = SamplingParams(
        suppress_tokens=list(range(700)), bad_words_ids=[[n] for n in range(700, 777)], max_length=9
    )
    with pytest.raises(BloomeryError, match=r"no token is left .* try it without bad_words_ids or suppress_tokens"):
        llm.generate([5], params)


def test_a_model_that_gives_nan_goes_on_where_that_is_asked_for(folder):
    broken = LLM(folder)
    broken.decoder.blocks[0].mlp.up.bias[3] = torch.nan
    done = broken.generate([[5, 6, 7]], SamplingParams(max_new_tokens=3, ignore_eos=True, remove_invalid_values=True))
    assert tokens(done) == [(0, 0, 0)]


def test_a_text_whose_step_another_stopped_says_so_instead_of_going_on_wrongly(llm, monkeypatch):
    """Ctrl-C in one call, while the iterator of another is open on the same model."""
    stream = llm.stream(prompts(llm)[0], GREEDY)
    next(stream)

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(llm.decoder, "forward", stopped)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(prompts(llm)[1], GREEDY)
    with pytest.raises(BloomeryError, match="a step that it was part of was stopped by KeyboardInterrupt"):
        list(stream)
    assert llm.engine.idle
    assert tokens(llm.generate(prompts(llm)[0], GREEDY)) == tokens(llm.generate(prompts(llm)[0], GREEDY))


def test_no_thread_loses_what_another_threads_step_has_ended(llm, monkeypatch):
    """A request has ended some time before the step that ended it hands out its last token."""
    step, done = llm.engine.step, {}

    def slow():
        updates = step()
        sleep(0.01)
        return updates

    def generate(n):
        done[n] = 0
        for _ in range(5):
            for piece in llm.stream([5 + n, 6], SamplingParams(max_new_tokens=4 + n, ignore_eos=True)):
                sleep(0.003 * (1 + n))  # while others step
                done[n] += piece.completion is not None

    monkeypatch.setattr(llm.engine, "step", slow)
    threads = [Thread(target=generate, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert done == dict.fromkeys(range(3), 5)


def test_pieces_that_wait_while_another_steps_hold_the_text_of_their_own_tokens(llm):
    """Two iterators on one model: what one of them runs, the other finds waiting."""
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    alone = [(piece.text, piece.token_ids) for piece in llm.stream("the cat", params)]
    waiting, other = llm.stream("the cat", params), llm.stream("a river", params)
    found = [next(waiting)]
    list(other)
    found += list(waiting)
    assert [(piece.text, piece.token_ids) for piece in found] == alone


def test_of_several_prompts_the_one_that_is_refused_is_numbered(llm):
    with pytest.raises(UsageError, match=r"^prompt 2 of 3: token id 777 is outside"):
        llm.generate([[5], [777], [6]])
    with pytest.raises(UsageError, match=r"^token id 777"):
        llm.generate([777])
    with pytest.raises(UsageError, match=r"^text 1 of 2: nothing to score"):
        llm.score([[5], [5, 6]])


def test_max_time_counts_from_the_first_row_that_runs(folder):
    """Not while a text waits for blocks, which it asks for with its rows in hand."""
    llm = LLM(folder, max_seq_len=64, max_batch_size=2, cache_positions=64)
    seconds = iter(range(1000))
    first = Request(Sampling([5] * 30, SamplingParams(max_new_tokens=20, ignore_eos=True)))
    timed = SamplingParams(max_time=4.5, max_new_tokens=20, ignore_eos=True)
    second = Request(Sampling([6] * 30, timed, clock=lambda: next(seconds)))
    for request in (first, second):
        llm.engine.add(request)
    while first.finished is None:
        llm.engine.step()
        assert next(seconds) < 100
    while not llm.engine.idle:
        llm.engine.step()
    assert len(second.strategy.texts[0].continuation) == 5
