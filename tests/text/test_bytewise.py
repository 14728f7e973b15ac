"""A tokenizer without words: any text survives it, every id reads as something, and transformers reads its files."""

import json
from pathlib import Path

import pytest
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

from bloomery.errors import UsageError
from bloomery.text.bytewise import END_ID, SMALLEST, byte_letters, bytewise_files, bytewise_tokenizer
from bloomery.text.stream import TextStream
from bloomery.text.tokenizer import LazyTokenizer, Tokenizer

TEXTS = [
    "",
    " ",
    "It was the best",
    "  \n\t\r\n\0 ",
    "naïve ☃ 日本語 👩‍👩‍👧 \u200b\ufeff",
    "<300> <257>",
    "\x7f\x80\xa0\xad\xff",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return LazyTokenizer(lambda: bytewise_tokenizer(1000))


@pytest.mark.parametrize("text", TEXTS)
def test_text_becomes_its_bytes_and_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_id_becomes_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.backend.get_vocab_size() == 1000
    assert tokenizer.decode([END_ID]) == ""
    for index in range(1000):
        if index < 128:
            assert tokenizer.decode([index]) == chr(index)
        elif index != END_ID:
            assert tokenizer.decode([index]) == (f"<{index}>" if index > END_ID else "\N{REPLACEMENT CHARACTER}")


def test_the_end_can_be_spelled_and_is_special(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a<|endoftext|>b") == [97, END_ID, 98]


def test_letters_are_those_of_the_library() -> None:
    assert set(byte_letters()) == set(ByteLevel.alphabet())
    assert len(set(byte_letters())) == 256


def test_text_of_random_ids_can_be_streamed(tokenizer: Tokenizer) -> None:
    ids = [104, 0xC3, 0xA9, 257, 0xE2, 0x98, 999, 0xFF, 10, 512]
    stream = TextStream(tokenizer.decode)
    pieces = []
    for index in ids:
        stream.advance(index)
        pieces.append(stream.take())
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("size", [SMALLEST, 300, 50257])
def test_transformers_reads_the_files_as_we_do(tmp_path: Path, size: int) -> None:
    for name, text in bytewise_files(size, 2048).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    ours, theirs = Tokenizer(tmp_path / "tokenizer.json"), AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == size
    assert theirs.eos_token_id == END_ID
    assert theirs.model_max_length == 2048
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"] == list(text.encode())
    assert ours.decode(list(range(size))) == theirs.decode(list(range(size)), skip_special_tokens=True)


@pytest.mark.parametrize("size", [1, 255, 256])
def test_vocabulary_too_small_for_the_bytes_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"vocabulary of {size} .*at least 257"):
        bytewise_tokenizer(size)
