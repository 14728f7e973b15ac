"""A tiny random model with a tokenizer, for everything that handles text. Knows no test."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tiny import SHAPES, build

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
EOS = 2


def byte_level_tokenizer(vocab_size: int) -> Tokenizer:
    """All 256 bytes and some merges, split as BLOOM's tokenizer splits."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    words = Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, and the dog saw 猫 и собаку 🐈 there"] * 20, trainer)
    return tokenizer


def build_talker(folder: Path) -> Path:
    """A BLOOM of 6 heads that talks nonsense in any script."""
    build(next(shape for shape in SHAPES if shape.name == "bloom-6-heads"), folder)
    byte_level_tokenizer(400).save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, 3], "temperature": 0.7}))
    return folder
