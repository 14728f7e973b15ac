"""The learned tokenizer is BLOOM's kind: byte-level, loses nothing, and transformers gives the same ids."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from bloomery.errors import UsageError
from bloomery.train.tokenizer import SPECIAL_IDS, byte_lengths, tokenizer_files, train_tokenizer

TEXTS = [
    "the miller sold three loaves at the mill.",
    "  two spaces, a\ttab,\r\nand lines\n\n",
    "naïve café — “quoted” … 東京タワー 🙂 e\u0301",
    "".join(map(chr, range(1, 256))),
    "don't, [won't] (can't) | 1234567",
]


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> Tokenizer:
    return train_tokenizer([file.read_text(encoding="utf-8") for file in sorted(corpus.glob("train-*"))], 320)


def test_special_tokens_have_the_ids_of_bloom(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in ("<unk>", "<s>", "</s>", "<pad>")] == [0, 1, 2, 3]
    assert SPECIAL_IDS == {"unk_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    assert tokenizer.get_vocab_size() == 320


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_comes_back_from_its_ids(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert byte_lengths(tokenizer)[ids].sum() == len(text.encode())
    assert not set(ids) & set(SPECIAL_IDS.values())


def test_words_keep_the_space_before_them_and_end_at_punctuation(tokenizer: Tokenizer) -> None:
    split = tokenizer.pre_tokenizer.pre_tokenize_str("the mill, isn't it? (at last)")
    # What the pattern does not match stays together, as in bigscience/bloom.
    assert [piece for piece, _ in split] == ["the", "Ġmill", ",", "Ġisn't", "Ġit", "?Ġ(", "at", "Ġlast", ")"]


def test_common_words_are_one_token(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(" London").ids) == 1
    assert np.max(byte_lengths(tokenizer)) > 4


def test_transformers_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name, text in tokenizer_files(tokenizer, 48).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert theirs(text).input_ids == tokenizer.encode(text).ids
        assert theirs.decode(theirs(text).input_ids) == text
    assert [theirs.unk_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id] == [0, 1, 2, 3]
    assert theirs.model_max_length == 48


def test_a_text_with_too_few_words_is_refused() -> None:
    with pytest.raises(UsageError, match=r"lower model\.vocab_size"):
        train_tokenizer(["one two three"], 400)


def test_a_special_token_that_the_training_text_spells_out_stays_text() -> None:
    text = "the end\n</s>\n<pad>\n<s>, <unk> and\n<unk>"
    learned = train_tokenizer([f"{text}\n" * 200], 275)
    learned.encode_special_tokens = True
    ids = learned.encode(text).ids
    assert not set(ids) & set(SPECIAL_IDS.values())
    assert byte_lengths(learned)[ids].sum() == len(text)
