"""Texts that must hold words: all of them do, or there is an error that says why."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from bloomery import LLM, SamplingParams, UsageError
from bloomery.errors import BloomeryError
from talker import EOS, build_talker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_talker(tmp_path_factory.mktemp("constrained") / "talker")


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(folder)


def holds(ids: tuple[int, ...], part: list[int]) -> bool:
    return any(list(ids[n : n + len(part)]) == part for n in range(len(ids)))


@pytest.mark.parametrize(
    "words",
    [
        [[[300, 301], [300, 302], [300, 303, 304]]],  # which begin alike
        [[[300, 301], [300, 302]], [300, 305]],
        [[300, 300, 301]],
        [[300], [300], [301, 300]],
    ],
    ids=str,
)
def test_every_text_holds_one_of_each_choice(llm: LLM, words: list[Any]) -> None:
    options = {"num_beams": 6, "num_return_sequences": 4, "max_new_tokens": 14}
    free = llm.generate([[5, 6, 7], [9] * 70], SamplingParams(**options))
    forced = llm.generate([[5, 6, 7], [9] * 70], SamplingParams(force_words_ids=words, **options))
    assert forced
    for word in words:
        choice = word if isinstance(word[0], list) else [word]
        assert all(any(holds(one.token_ids, ids) for ids in choice) for one in forced)
        assert not any(holds(one.token_ids, ids) for one in free for ids in choice)


def test_each_choice_of_a_word_that_has_begun_is_as_good_as_the_others(llm: LLM) -> None:
    """The likelier end of the word wins, whichever is written first."""
    options = {"num_beams": 4, "max_new_tokens": 8, "sequence_bias": {(300, 302): 6.0}}
    one, other = (
        llm.generate([[5, 6, 7]], SamplingParams(force_words_ids=[words], **options))[0]
        for words in ([[300, 301], [300, 302]], [[300, 302], [300, 301]])
    )
    assert one.token_ids == other.token_ids
    assert holds(one.token_ids, [300, 302])


def test_a_word_of_the_prompt_is_still_to_come(llm: LLM) -> None:
    one = llm.generate([[5, 300, 301]], SamplingParams(num_beams=3, max_new_tokens=6, force_words_ids=[[300, 301]]))[0]
    assert holds(one.token_ids, [300, 301])


def test_no_text_ends_before_its_words(llm: LLM) -> None:
    options = {"num_beams": 4, "max_new_tokens": 12, "sequence_bias": {(EOS,): 20.0}}
    assert llm.generate([[5, 6, 7]], SamplingParams(**options))[0].token_ids == (EOS,)
    forced = llm.generate([[5, 6, 7]], SamplingParams(force_words_ids=[[300, 301], [302]], **options))[0]
    assert forced.finish_reason == "stop"
    assert sorted(forced.token_ids) == sorted((300, 301, 302, EOS))


def test_words_are_written_behind_a_space(llm: LLM) -> None:
    params = SamplingParams(num_beams=4, max_new_tokens=12, force_words=["cat", " mat", ["dog", "猫"]])
    one = llm.generate("the", params)[0]
    assert " cat" in one.text
    assert " mat" in one.text
    assert " dog" in one.text or " 猫" in one.text


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"force_words_ids": [[777]]}, "force_words_ids names token 777, which is outside the model's vocabulary"),
    ({"force_words_ids": [[300, EOS]]}, f"force_words ask for token {EOS}, which ends a text"),
    (
        {"force_words_ids": [[300] * 5, "6|7,8"]},
        "force_words need 6 tokens, and a text may have 5: raise max_new_tokens",
    ),
    ({"force_words": ["cat|cat"]}, "force_words 'cat|cat', as ids, has .* so leave the longer out"),
    ({"force_words": ["\ud800"]}, "not valid Unicode"),
]


@pytest.mark.parametrize(("options", "said"), IMPOSSIBLE, ids=lambda value: ascii(value)[:40])
def test_words_that_no_text_can_hold_are_refused_in_one_line(llm: LLM, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        llm.generate([[5, 6, 7]], SamplingParams(num_beams=2, max_new_tokens=5, **options))
    assert "\n" not in str(caught.value)
    assert llm.engine.idle


def test_an_end_of_sequence_may_be_forced_where_it_ends_nothing(llm: LLM) -> None:
    params = SamplingParams(num_beams=2, max_new_tokens=5, ignore_eos=True, force_words_ids=[[300, EOS]])
    assert holds(llm.generate([[5, 6, 7]], params)[0].token_ids, [300, EOS])


def test_where_no_text_has_all_words_the_error_says_so(llm: LLM) -> None:
    params = SamplingParams(num_beams=3, max_new_tokens=6, no_repeat_ngram_size=1, force_words_ids=[[300], [300]])
    with pytest.raises(BloomeryError, match="no text of 6 tokens with all of force_words was found: raise") as caught:
        llm.generate([[5, 6, 7]], params)
    assert "\n" not in str(caught.value)
    assert llm.engine.idle


def test_words_need_a_tokenizer_and_ids_do_not(folder: Path, tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    shutil.copytree(folder, silent)
    (silent / "tokenizer.json").unlink()
    llm = LLM(silent)
    with pytest.raises(UsageError, match="give force_words_ids instead of force_words"):
        llm.generate([5], SamplingParams(num_beams=2, force_words=["cat"]))
    assert llm.generate([5], SamplingParams(num_beams=2, max_new_tokens=4, force_words_ids=[[300]]))
