"""A word as token sequences: behind a space and without one, with tokenizers of either habit."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from bloomery import UsageError
from bloomery.text.tokenizer import Tokenizer
from bloomery.text.words import spaced_ids, word_ids
from talker import byte_level_tokenizer


@pytest.fixture
def byte_level(tmp_path: Path) -> Tokenizer:
    byte_level_tokenizer(400).save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path / "tokenizer.json")


@pytest.fixture
def spaced(tmp_path: Path) -> Tokenizer:
    """One that puts a space before every text, as Llama's."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", "▁", "c", "a", "t", "▁c", "\n"])}
    backend = Backend(models.BPE(vocabulary, [("▁", "c")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("word", ["cat", " cat"])
def test_a_word_is_written_with_and_without_a_space(byte_level: Tokenizer, word: str) -> None:
    plain, behind = (tuple(byte_level.encode(text)) for text in ("cat", " cat"))
    assert plain != behind
    assert word_ids(byte_level, word) == [plain, behind]


def test_a_word_without_a_space_is_found_where_the_tokenizer_always_puts_one(spaced: Tokenizer) -> None:
    written = word_ids(spaced, "cat")
    assert (5, 3, 4) in written  # ▁c a t
    assert (2, 3, 4) in written  # c a t
    assert len(set(written)) == len(written)


@pytest.mark.parametrize("word", ["", "  ", "dog", "\ud800"])
def test_a_word_that_has_no_tokens_is_refused_in_one_line(spaced: Tokenizer, word: str) -> None:
    with pytest.raises(UsageError, match="word") as caught:
        word_ids(spaced, word)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="word") as caught:
        spaced_ids(spaced, word)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["cat", " cat"])
def test_behind_a_space_is_as_it_stands_in_a_text(byte_level: Tokenizer, spaced: Tokenizer, word: str) -> None:
    assert spaced_ids(byte_level, word) == tuple(byte_level.encode(" cat"))
    assert spaced_ids(spaced, word) == (5, 3, 4)  # ▁c a t: a space before a text would be a second one
