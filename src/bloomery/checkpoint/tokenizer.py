"""A model's tokenizer: read from files, or made where weights are made as well. Knows no prompt."""

from functools import partial
from pathlib import Path

from bloomery.checkpoint.folder import Folder
from bloomery.text.bytewise import SMALLEST, bytewise_tokenizer
from bloomery.text.tokenizer import LazyTokenizer, read_tokenizer


def open_tokenizer(folder: Folder, instead: Path | None = None) -> LazyTokenizer | None:
    """The tokenizer of a model, read when it is needed, or None: then the model works on token ids.

    Args:
        instead: the file of another one, such as an adapter's.

    Raises:
        CheckpointError: its files lie elsewhere. That they are damaged, or of a kind that is not read, is said when
            they are.
    """
    file = instead or folder.tokenizer
    if file is not None:
        return LazyTokenizer(partial(read_tokenizer, file))
    size = folder.config.vocab_size
    if folder.seeded is None or size < SMALLEST:
        return None
    return LazyTokenizer(partial(bytewise_tokenizer, size))
