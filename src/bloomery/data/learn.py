"""Text files -> a folder with the tokenizer that was learned from them. Knows no token file."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from tokenizers import Tokenizer

from bloomery.data.bpe import tokenizer_files, train_tokenizer
from bloomery.data.documents import plan_shards, read_documents
from bloomery.data.job import describe_text
from bloomery.disk.place import replacing_folder
from bloomery.errors import UsageError
from bloomery.log import logger

LEARNED = "learned.json"
"""Says what a tokenizer was learned from."""


def learn_tokenizer(
    files: Sequence[Path], folder: Path, vocab_size: int, *, keys: Sequence[str] = ("text",), seq_len: int | None = None
) -> Tokenizer:
    """A byte-level BPE learned from text, written into a folder as transformers reads it. The one that an earlier call
    with the same text and size has left there is taken.

    Args:
        folder: a new one.
        seq_len: the context of the model that it is for; None where there is none yet.

    Raises:
        UsageError: the folder holds something else, a file cannot be read, or the text is too small for the vocabulary.
    """
    try:
        about = {"text": describe_text(plan_shards(files), keys), "vocab_size": vocab_size, "seq_len": seq_len}
        job = sha256(json.dumps(about).encode()).hexdigest()
        if folder.exists():
            return _learned_before(folder, job)
        logger.info(
            "learning a vocabulary of %d tokens from %d file%s", vocab_size, len(files), "s" * (len(files) != 1)
        )
        tokenizer = train_tokenizer(read_documents(files, keys), vocab_size)
        with replacing_folder(folder) as fresh:
            for name, text in tokenizer_files(tokenizer, seq_len).items():
                (fresh / name).write_text(text, encoding="utf-8")
            (fresh / LEARNED).write_text(json.dumps({"job": job}) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}: choose another place") from None
    return tokenizer


def _learned_before(folder: Path, job: str) -> Tokenizer:
    try:
        same = json.loads((folder / LEARNED).read_bytes())["job"] == job
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise UsageError(f"{folder} is there already, and not of this text and size: delete it or choose another place")
    logger.info("%s was learned from this text already", folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
