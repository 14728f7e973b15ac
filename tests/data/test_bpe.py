"""The learned tokenizer is BLOOM's kind: byte-level, loses nothing, and transformers gives the same ids."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import AutoTokenizer

from bloomery.data.bpe import (
    SPECIAL_IDS,
    byte_lengths,
    is_byte_level,
    tokenizer_files,
    tokenizer_hash,
    train_tokenizer,
    vocab_size_of,
)
from bloomery.errors import UsageError

TEXTS = [
    "the miller sold three loaves at the mill.",
    "  two spaces, a\ttab,\r\nand lines\n\n",
    "naïve café — “quoted” … 東京タワー 🙂 e\u0301",
    "".join(map(chr, range(1, 256))),
    "don't, [won't] (can't) | 1234567",
]


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    text = "the miller in London sold the widow three loaves at the mill; an old sailor forgot it, by London. "
    return train_tokenizer([text] * 20, 300)


def test_special_tokens_have_the_ids_of_bloom(learned: Tokenizer) -> None:
    assert [learned.token_to_id(token) for token in ("<unk>", "<s>", "</s>", "<pad>")] == [0, 1, 2, 3]
    assert SPECIAL_IDS == {"unk_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    assert learned.get_vocab_size() == vocab_size_of(learned) == 300


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_comes_back_from_its_ids(learned: Tokenizer, text: str) -> None:
    ids = learned.encode(text).ids
    assert learned.decode(ids) == text
    assert byte_lengths(learned)[ids].sum() == len(text.encode())
    assert not set(ids) & set(SPECIAL_IDS.values())


def test_words_keep_the_space_before_them_and_end_at_punctuation(learned: Tokenizer) -> None:
    split = learned.pre_tokenizer.pre_tokenize_str("the mill, isn't it? (at last)")
    # What the pattern does not match stays together, as in bigscience/bloom.
    assert [piece for piece, _ in split] == ["the", "Ġmill", ",", "Ġisn't", "Ġit", "?Ġ(", "at", "Ġlast", ")"]


def test_common_words_are_one_token(learned: Tokenizer) -> None:
    assert len(learned.encode(" London").ids) == 1
    assert np.max(byte_lengths(learned)) > 4


@pytest.mark.parametrize("seq_len", [48, None])
def test_transformers_gives_the_same_ids(learned: Tokenizer, tmp_path: Path, seq_len: int | None) -> None:
    for name, text in tokenizer_files(learned, seq_len).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert theirs(text).input_ids == learned.encode(text).ids
        assert theirs.decode(theirs(text).input_ids) == text
    assert [theirs.unk_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id] == [0, 1, 2, 3]
    assert theirs.model_max_length == (48 if seq_len else int(1e30))


def test_a_text_with_too_few_words_is_refused() -> None:
    with pytest.raises(UsageError, match="lower vocab_size or add text"):
        train_tokenizer(["one two three"], 400)


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(UsageError, match="give 260 or more"):
        train_tokenizer(["one two three"], 259)


def test_a_special_token_that_the_training_text_spells_out_stays_text() -> None:
    text = "the end\n</s>\n<pad>\n<s>, <unk> and\n<unk>"
    spelt = train_tokenizer([f"{text}\n" * 200], 275)
    spelt.encode_special_tokens = True
    ids = spelt.encode(text).ids
    assert not set(ids) & set(SPECIAL_IDS.values())
    assert byte_lengths(spelt)[ids].sum() == len(text)


def test_any_special_token_stands_for_no_text(learned: Tokenizer) -> None:
    more = Tokenizer.from_str(learned.to_str())
    more.add_special_tokens([AddedToken("<|image|>", special=True)])
    assert byte_lengths(more)[more.token_to_id("<|image|>")] == 0


def test_the_hash_of_a_tokenizer_changes_with_it_alone(learned: Tokenizer) -> None:
    again = Tokenizer.from_str(learned.to_str(pretty=True))
    assert tokenizer_hash(again) == tokenizer_hash(learned)
    again.add_tokens(["more"])
    assert tokenizer_hash(again) != tokenizer_hash(learned)


def test_only_a_byte_level_tokenizer_spells_bytes(learned: Tokenizer) -> None:
    assert is_byte_level(learned)
    other = Tokenizer(models.BPE({"a": 0, "▁a": 1, "▁": 2}, [("▁", "a")], byte_fallback=True))
    other.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    assert not is_byte_level(other)
    other.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    assert is_byte_level(other)
