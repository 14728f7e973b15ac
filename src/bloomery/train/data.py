"""Text files -> token files, and samples from them: sample i of a run is a function of (seed, i). Knows no model."""

import glob
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bloomery.errors import UsageError
from bloomery.ops.random import keyed
from bloomery.train.tokenizer import EOS

ROUNDS = 4
"""Luby and Rackoff 1988: four Feistel rounds of a random function cannot be told from a random permutation."""


def find_files(option: str, patterns: Sequence[str]) -> tuple[Path, ...]:
    """The files that names or patterns stand for: each once, in the order of the patterns, then by name.

    Raises:
        UsageError: a pattern stands for no file.
    """
    found: dict[Path, Path] = {}
    for pattern in map(os.path.expanduser, patterns):
        # A name that is there is taken as it is written, even if it holds the letters of a pattern.
        names = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        files = [Path(name) for name in names if Path(name).is_file()]
        if not files:
            raise UsageError(f"{option}: no file matches '{pattern}' in {Path.cwd()}: correct it, or create the file")
        for file in files:
            found.setdefault(file.resolve(), file)
    return tuple(found.values())


def read_texts(files: Sequence[Path]) -> Iterator[str]:
    """The documents, one at a time, every byte of theirs kept.

    Raises:
        UsageError: a file cannot be read, or is not UTF-8.
    """
    for file in files:
        try:
            yield file.read_bytes().decode("utf-8")
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise UsageError(f"{file} is not UTF-8 at byte {error.start}: convert it") from None


@dataclass(frozen=True)
class TokenFile:
    """A file that holds nothing but token ids."""

    path: Path
    dtype: str
    count: int
    text_bytes: int

    def open(self) -> np.ndarray[tuple[int], np.dtype[np.unsignedinteger]]:
        """(count,) the tokens, mapped: only what is used is read."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.count,))


def write_tokens(tokenizer: Tokenizer, files: Sequence[Path], path: Path) -> TokenFile:
    """Tokenise documents into one file, each followed by the end-of-sequence token.

    Special tokens spelt out in a text are text. The file appears whole or not at all.

    Raises:
        UsageError: a document cannot be read, or the file cannot be written.
    """
    dtype = "uint16" if tokenizer.get_vocab_size() <= 2**16 else "uint32"
    count = text_bytes = 0
    handle, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    tokenizer.encode_special_tokens = True
    try:
        with os.fdopen(handle, "wb") as file:
            for text in read_texts(files):
                ids = np.array([*tokenizer.encode(text, add_special_tokens=False).ids, EOS], dtype=dtype)
                file.write(ids.tobytes())
                count += len(ids)
                text_bytes += len(text.encode())
        os.replace(fresh, path)
    except OSError as error:  # of writing alone: `read_texts` has answered its own
        raise UsageError(f"{path} cannot be written: {error.strerror}: make room, or choose another run.out") from None
    finally:
        tokenizer.encode_special_tokens = False
        Path(fresh).unlink(missing_ok=True)
    return TokenFile(path, dtype, count, text_bytes)


def permuted(index: int, size: int, key: int) -> int:
    """Where a keyed permutation of 0 … size-1 sends `index`: a Feistel network over the next even number of bits.

    It is a permutation of a power of 4; results outside `size` are sent on until one is inside (cycle walking,
    Black and Rogaway 2002), which keeps it one to one.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for turn in range(ROUNDS):
            left, right = right, left ^ (keyed(key, turn, right) & low)
        index = left << half | right
        if index < size:
            return index


class Samples:
    """The endless stream of training samples: no cursor, so its state is the number of samples taken.

    An epoch is every window of seq_len tokens once, in an order of its own. Its windows start at an offset of its own
    too, so that text cut in two in one epoch is whole in another.

    Raises:
        UsageError: the text is shorter than two sequences.
    """

    def __init__(self, tokens: np.ndarray[tuple[int], np.dtype[np.unsignedinteger]], seq_len: int, seed: int) -> None:
        self.tokens, self.seq_len, self.seed = tokens, seq_len, seed
        # One window fewer than fit, to leave room for the offset.
        self.windows = len(tokens) // seq_len - 1
        if self.windows < 1:
            raise UsageError(
                f"data.train holds {len(tokens)} tokens, less than two sequences of {seq_len}: add text or lower"
                " model.seq_len"
            )

    def start(self, index: int) -> int:
        """The first token of sample `index`."""
        epoch, place = divmod(index, self.windows)
        offset = keyed(self.seed, epoch, 0) % self.seq_len
        return offset + self.seq_len * permuted(place, self.windows, keyed(self.seed, epoch, 1))

    def take(self, first: int, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """(count, seq_len + 1) samples first … first+count: the inputs and, one further, what is to be predicted."""
        starts = [self.start(index) for index in range(first, first + count)]
        return np.stack([self.tokens[at : at + self.seq_len + 1] for at in starts]).astype(np.int64)
