"""A shard's documents -> ids. Knows no file that is written, and no process."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from bloomery.data.documents import Shard, read_shard
from bloomery.data.unfinished import Encoded
from bloomery.errors import UsageError

LONGEST = 2**31 - 1
"""Tokens of a document: an index counts them in 32 bits."""


class Encoder:
    """Encodes shards. It can be sent to another process.

    Args:
        eod: the id that follows every document.
        dtype: the number type of the tokens.
        keys: fields of a row that make its document.
    """

    def __init__(self, tokenizer: Tokenizer, eod: int, dtype: np.dtype[np.integer], keys: Sequence[str]) -> None:
        self.eod, self.dtype, self.keys = eod, dtype, keys
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str(pretty=False))  # its settings are changed
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __getstate__(self) -> tuple[int, str, Sequence[str], str]:
        return self.eod, self.dtype.str, self.keys, self._tokenizer.to_str(pretty=False)

    def __setstate__(self, state: tuple[int, str, Sequence[str], str]) -> None:
        eod, dtype, keys, described = state
        self.__init__(Tokenizer.from_str(described), eod, np.dtype(dtype), keys)  # type: ignore[misc]

    def __call__(self, shard: Shard) -> Encoded:
        """The shard as tokens.

        Raises:
            UsageError: what is there is no text, or one document is too long.
        """
        pieces, lengths, text_bytes = [], [], 0
        for text in read_shard(shard, self.keys):
            # Of a batch the library computes no offsets, which take longer than the ids.
            ids = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
            if len(ids) >= LONGEST:
                raise UsageError(f"{shard.files[0]}: a document of {len(ids)} tokens: cut it into several")
            pieces.append(np.array([*ids, self.eod], dtype=self.dtype).tobytes())
            lengths.append(len(ids) + 1)
            text_bytes += len(text.encode())
        return Encoded(b"".join(pieces), np.array(lengths, dtype="<i4").tobytes(), text_bytes)
