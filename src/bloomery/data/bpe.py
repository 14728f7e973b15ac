"""Trains a byte-level BPE of BLOOM's kind and spells it as files. Knows no model, and no file of text."""

import json
import re
from collections.abc import Iterable
from hashlib import sha256

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tokenizers.pre_tokenizers import ByteLevel, Split

from bloomery.errors import UsageError

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
"""BLOOM's special tokens; their ids are 0 to 3, in this order."""

SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "unk_token_id": 0}
EOS = SPECIAL_IDS["eos_token_id"]
SMALLEST = 256 + len(SPECIAL)
"""Tokens that any vocabulary has: the bytes and the special ones."""

SPELT_OUT = re.compile(f"({'|'.join(token[:-1] for token in SPECIAL.values())})>")
"""A special token that stands in a text as text; its last character apart."""

WORDS = r" ?[^(\s|[.,!?…。，、।۔،])]+"
"""The pattern of bigscience/bloom's tokenizer.json: a word with the space before it, cut at punctuation."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn the merges of a byte-level BPE.

    All 256 bytes are in the vocabulary, so that every text comes back from its ids unchanged. No merge ends in a
    special token: where the texts spell one out, the learner sees two words.

    Raises:
        UsageError: the texts hold too few different words for so many tokens, or the bytes do not fit.
    """
    if vocab_size < SMALLEST:
        raise UsageError(
            f"a vocabulary of {vocab_size} has no room for 256 bytes and 4 special tokens: give 260 or more"
        )
    tokenizer = Tokenizer(models.BPE())
    words = Split(Regex(WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((SPELT_OUT.sub(r"\1 >", text) for text in texts), trainer)
    found = tokenizer.get_vocab_size()
    if found != vocab_size:
        raise UsageError(
            f"the text gives a vocabulary of {found} tokens, not {vocab_size}: lower vocab_size or add text"
        )
    return tokenizer


def tokenizer_files(tokenizer: Tokenizer, seq_len: int | None = None) -> dict[str, str]:
    """File name -> text of a Hugging Face tokenizer.

    Args:
        seq_len: the context of the model that it belongs to; None where there is none yet.
    """
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({} if seq_len is None else {"model_max_length": seq_len}),
        "padding_side": "left",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **SPECIAL,
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=False) + "\n",
        "tokenizer_config.json": json.dumps(described, indent=2, ensure_ascii=False) + "\n",
    }


def byte_lengths(tokenizer: Tokenizer) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """(V,) bytes of text that each token of a byte-level tokenizer stands for; 0 for the special ones, which stand for
    none, and for ids that no token has."""
    lengths = np.zeros(vocab_size_of(tokenizer), dtype=np.int64)
    for token, index in tokenizer.get_vocab().items():
        lengths[index] = len(token)  # a letter spells a byte
    for index, added in tokenizer.get_added_tokens_decoder().items():
        lengths[index] = 0 if added.special else len(added.content.encode())  # these are spelt as text
    return lengths


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether every letter of a token spells one byte of text."""
    return '"type":"ByteLevel"' in json.dumps(json.loads(tokenizer.to_str()).get("decoder"), separators=(",", ":"))


def vocab_size_of(tokenizer: Tokenizer) -> int:
    """Every id is below it. It is more than the tokens where a vocabulary has gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """sha256 of all that decides which ids a text becomes."""
    return sha256(tokenizer.to_str(pretty=False).encode()).hexdigest()
