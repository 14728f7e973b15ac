"""tokenizer.json: text to ids and ids to text. Knows nothing of models."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend

from bloomery.errors import CheckpointError, UsageError


class Tokenizer:
    """A tokenizer read from a file.

    Raises:
        CheckpointError: the file is damaged.
    """

    def __init__(self, file: Path) -> None:
        try:
            self._backend = Backend.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{file} is no tokenizer ({error}): fetch it again") from None
        # A tokenizer.json may carry the settings of its training: they would cut or pad prompts without a word.
        self._backend.no_truncation()
        self._backend.no_padding()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with the special ids that the tokenizer itself puts around one.

        Raises:
            UsageError: the text holds lone surrogates, which no UTF-8 can carry.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the text is not valid Unicode at character {error.start}: {error.reason}") from None
        return self._backend.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        return self._backend.decode(list(ids), skip_special_tokens=True)
