"""Documents of several scripts, and a tokenizer for them. Knows no test."""

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bloomery.data.bpe import train_tokenizer

WORDS = ["the", "miller", "sold", "loaves", "in", "London", "—", "naïve", "café,", "“quoted”", "東京", "🙂", "spoon…"]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """40 documents: an empty one, some with special tokens spelt out, lines, NUL and letters of many bytes."""
    chosen = random.Random(5)
    plain = [" ".join(chosen.choices(WORDS, k=chosen.randrange(1, 60))) for _ in range(36)]
    return [*plain, "", "a\r\nb\n\n\x00 </s> <pad>", "<s></s>", "end\n"]


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Tokenizer:
    return train_tokenizer(texts, 300)


@pytest.fixture
def folder(texts: list[str], tmp_path: Path) -> Path:
    """The documents, a file each, whose names keep their order."""
    (tmp_path / "text").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "text" / f"{number:02}.txt").write_bytes(text.encode())
    return tmp_path / "text"
