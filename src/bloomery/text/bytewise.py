"""A tokenizer for models that have learnt no words: a token for each byte, and filler tokens. Knows no model."""

import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bloomery.errors import UsageError

BYTES = 256
END, END_ID = "<|endoftext|>", BYTES
SMALLEST = BYTES + 1
"""Tokens that any text needs: the bytes, and one that ends it."""


def bytewise_tokenizer(vocab_size: int) -> Tokenizer:
    """Ids 0 to 255 are the bytes, 256 ends a text, and every id above reads as its number, such as `<257>`.

    Any text becomes bytes, and no text becomes a filler token; every id becomes text.

    Raises:
        UsageError: the vocabulary is too small for the bytes.
    """
    if vocab_size < SMALLEST:
        raise UsageError(
            f"a vocabulary of {vocab_size} has no room for the {BYTES} bytes and an end: give at least {SMALLEST} "
            "tokens, or work on token ids"
        )
    words = [*byte_letters(), END, *(f"<{index}>" for index in range(SMALLEST, vocab_size))]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


def bytewise_files(vocab_size: int, seq_len: int) -> dict[str, str]:
    """File name -> text of that tokenizer, as a model folder has it."""
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": seq_len,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": END,
    }
    return {
        "tokenizer.json": bytewise_tokenizer(vocab_size).to_str(pretty=False) + "\n",
        "tokenizer_config.json": json.dumps(described, indent=2) + "\n",
    }


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it can be seen, else one from 256
    on (Radford et al. 2019, the code of GPT-2, `bytes_to_unicode`)."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = iter(range(BYTES, 2 * BYTES))
    return [chr(byte if byte in seen else next(unseen)) for byte in range(BYTES)]
