"""The one format of token files: Megatron's memory-mapped PREFIX.bin and PREFIX.idx, and PREFIX.json with what they say
nothing of. Knows no text and no tokenizer.

PREFIX.idx, little-endian, after megatron/data/indexed_dataset.py (MMapIndexedDataset.Index):

    9 bytes   "MMIDIDX", 0, 0
    uint64    1, the version
    uint8     number type of a token: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16
    uint64    S, sequences
    uint64    D + 1, documents and one
    int32     S times: tokens of a sequence
    int64     S times: where it begins in PREFIX.bin, in bytes
    int64     D + 1 times: the first sequence of each document, and S

PREFIX.bin holds the tokens and nothing else. What we write has one sequence a document.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bloomery.data.source import Ends, Source, Tokens
from bloomery.errors import CheckpointError, UsageError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
VERSION = 1
KINDS = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
CODES = {np.dtype(kind): code for code, kind in KINDS.items()}
NARROW_BELOW = 65500
"""Vocabularies smaller than this get 16 bits a token: Megatron's own border."""
AT_ONCE = 2**20
"""Entries of an index that are held in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What PREFIX.json says. None: not known, because a part of it came without."""

    tokens: int
    documents: int
    bin_sha256: str
    idx_sha256: str
    vocab_size: int | None = None
    """Ids are below it."""
    eod: int | None = None
    """The id that ends every document."""
    tokenizer_sha256: str | None = None
    """Hash of the tokenizer, as `bpe.tokenizer_hash` has it."""
    text_bytes: int | None = None
    """Bytes of UTF-8 that the tokens stand for."""
    job: str | None = None
    """Hash of what the file was made from, so that the same call again finds it done."""


@dataclass(frozen=True)
class TokenFile:
    """A token file whose index has been checked."""

    prefix: Path
    dtype: np.dtype[np.integer]
    tokens: int
    sequences: int
    documents: int
    about: About | None
    """None for a file that another program wrote."""

    @cached_property
    def ids(self) -> Tokens:
        """(tokens,) mapped: only what is used is read."""
        if self.tokens == 0:  # no empty file can be mapped
            return np.empty(0, dtype=self.dtype)
        return np.memmap(with_suffix(self.prefix, ".bin"), dtype=self.dtype, mode="r", shape=(self.tokens,))

    @cached_property
    def lengths(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """(sequences,) tokens of each."""
        return self._table("<i4", HEADER.size, self.sequences)

    @cached_property
    def first_sequences(self) -> Ends:
        """(documents + 1,) the first sequence of each document, and the number of sequences."""
        return self._table("<i8", HEADER.size + 12 * self.sequences, self.documents + 1)

    def ends(self) -> Ends:
        """(documents,) the place after each document's last token."""
        after = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        return after[self.first_sequences[1:]]

    def source(self, part: range | None = None) -> Source:
        """The tokens of all documents, or of some that follow each other, for `Samples`."""
        sha256 = self.about.bin_sha256 if self.about else None
        if part is None:
            return Source(self.ids, str(self.prefix), self.ends, sha256)
        ends = self.ends()
        first, last = (int(ends[at - 1]) if at else 0 for at in (part.start, part.stop))
        inside = ends[part.start : part.stop] - first
        name = f"{self.prefix} (documents {part.start} to {part.stop})"
        return Source(self.ids[first:last], name, inside, sha256)

    def largest(self) -> int:
        """The largest id, for which all are read; -1 where there is none."""
        parts = range(0, self.tokens, AT_ONCE)
        return max((int(self.ids[at : at + AT_ONCE].max()) for at in parts), default=-1)

    def smallest(self) -> int:
        """The smallest id, for which all are read; 0 where there is none."""
        parts = range(0, self.tokens, AT_ONCE)
        return min((int(self.ids[at : at + AT_ONCE].min()) for at in parts), default=0)

    def check_hashes(self) -> None:
        """Read all of it and compare it with the hashes of PREFIX.json.

        Raises:
            CheckpointError: a byte is not what it was, or there is no PREFIX.json.
        """
        if self.about is None:
            raise CheckpointError(f"{with_suffix(self.prefix, '.json')} is missing: there is no hash to compare with")
        for suffix, wanted in ((".bin", self.about.bin_sha256), (".idx", self.about.idx_sha256)):
            path = with_suffix(self.prefix, suffix)
            if hash_of(path) != wanted:
                raise CheckpointError(f"{path} is not as it was written: a byte of it has changed; tokenize again")

    def _table(self, kind: str, offset: int, count: int) -> Any:
        path = with_suffix(self.prefix, ".idx")
        return np.memmap(path, dtype=kind, mode="r", offset=offset, shape=(count,)) if count else np.empty(0, kind)


def read_tokens(prefix: Path) -> TokenFile:
    """Open a token file and check its index: magic, version, number type, sizes, order of sequences and documents.

    Args:
        prefix: the path without ".bin"; one with ".bin" or ".idx" is taken as well.

    Raises:
        CheckpointError: a file is missing, cut off, or not what it should be.
    """
    prefix = prefix_of(prefix)
    index, data = with_suffix(prefix, ".idx"), with_suffix(prefix, ".bin")
    try:
        with index.open("rb") as file:
            raw = file.read(HEADER.size)
        index_size, size = index.stat().st_size, data.stat().st_size
    except OSError as error:
        raise CheckpointError(
            f"{error.filename} cannot be read: {error.strerror}; name a token file's prefix"
        ) from None
    if len(raw) < HEADER.size or not raw.startswith(MAGIC):
        raise CheckpointError(f"{index} is no token index: it does not begin with {MAGIC.decode('ascii')!r}")
    _, version, code, sequences, bounds = HEADER.unpack(raw)
    if version != VERSION or code not in KINDS or bounds < 1:
        raise CheckpointError(f"{index} is of version {version} with number type {code}: write it with whole numbers")
    if index_size != HEADER.size + 12 * sequences + 8 * bounds:
        raise CheckpointError(
            f"{index} has {index_size} bytes, and {sequences} sequences and {bounds - 1} documents of text alone take "
            f"{HEADER.size + 12 * sequences + 8 * bounds}: tokenize again"
        )
    dtype = np.dtype(KINDS[code])
    if size % dtype.itemsize:
        raise CheckpointError(f"{data} has {size} bytes, no multiple of a token's {dtype.itemsize}: tokenize again")
    about = _read_about(with_suffix(prefix, ".json"))
    found = TokenFile(prefix, dtype, size // dtype.itemsize, sequences, bounds - 1, about)
    _check_index(found)
    if about is not None and (about.tokens, about.documents) != (found.tokens, found.documents):
        raise CheckpointError(
            f"{with_suffix(prefix, '.json')} speaks of {about.tokens} tokens, and {data} holds {found.tokens}: they "
            "belong to different files; tokenize again"
        )
    return found


def _check_index(found: TokenFile) -> None:
    """Sequences must lie one after the other from the first byte to the last, documents likewise.

    Raises:
        CheckpointError: they do not.
    """
    index, at = with_suffix(found.prefix, ".idx"), 0
    begins = found._table("<i8", HEADER.size + 4 * found.sequences, found.sequences)
    for first in range(0, found.sequences, AT_ONCE):
        part = found.lengths[first : first + AT_ONCE]
        after = at + np.cumsum(part, dtype=np.int64)
        if part.min() < 0 or not np.array_equal(begins[first : first + AT_ONCE], (after - part) * found.dtype.itemsize):
            raise CheckpointError(f"{index}: sequences do not follow each other from {first} on: tokenize again")
        at = int(after[-1])
    if at != found.tokens:
        raise CheckpointError(
            f"{with_suffix(found.prefix, '.bin')} holds {found.tokens} tokens, and its index {at}: tokenize again"
        )
    before = 0
    for first in range(0, found.documents + 1, AT_ONCE):
        bounds = found.first_sequences[first : first + AT_ONCE]
        if (first == 0 and bounds[0] != 0) or bounds[0] < before or np.any(np.diff(bounds) < 0):
            raise CheckpointError(f"{index}: documents do not follow each other from {first} on: tokenize again")
        before = int(bounds[-1])
    if before != found.sequences:
        raise CheckpointError(f"{index}: its documents end at sequence {before} of {found.sequences}: tokenize again")


def write_index(
    file: BinaryIO,
    dtype: np.dtype[np.integer],
    lengths: np.ndarray[tuple[int], np.dtype[np.int32]],
    first_sequences: Ends | None = None,
) -> None:
    """Write an index, a stretch at a time.

    Args:
        lengths: (S,) tokens of each sequence.
        first_sequences: (D + 1,) the first sequence of each document, and S; None: one sequence a document.
    """
    count = len(lengths)
    documents = count if first_sequences is None else len(first_sequences) - 1
    file.write(HEADER.pack(MAGIC, VERSION, CODES[dtype], count, documents + 1))
    for part in _parts(lengths):
        file.write(part.astype("<i4").tobytes())
    at = 0
    for part in _parts(lengths):
        after = at + np.cumsum(part, dtype=np.int64)
        file.write(((after - part) * dtype.itemsize).astype("<i8").tobytes())
        at = int(after[-1])
    for first in range(0, documents + 1, AT_ONCE):
        stop = min(first + AT_ONCE, documents + 1)
        bounds = np.arange(first, stop) if first_sequences is None else first_sequences[first:stop]
        file.write(bounds.astype("<i8").tobytes())


def _parts(table: Any) -> Iterator[Any]:
    return (table[first : first + AT_ONCE] for first in range(0, len(table), AT_ONCE))


def narrowest(vocab_size: int) -> np.dtype[np.integer]:
    """The number type of tokens below `vocab_size`, as Megatron chooses it."""
    return np.dtype("<u2" if vocab_size < NARROW_BELOW else "<i4")


def with_suffix(prefix: Path, suffix: str) -> Path:
    """PREFIX.bin: a prefix may have dots of its own, which stay."""
    return prefix.with_name(prefix.name + suffix)


def prefix_of(path: Path) -> Path:
    """The prefix that is meant by itself, or by PREFIX.bin or PREFIX.idx."""
    named = path.suffix in (".bin", ".idx") and not with_suffix(path, ".idx").is_file()
    return path.with_suffix("") if named else path


def hash_of(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def about_text(about: About) -> str:
    """PREFIX.json."""
    return json.dumps({"format": "bloomery-tokens", "version": 1, **asdict(about)}, indent=2) + "\n"


def _read_about(path: Path) -> About | None:
    """What PREFIX.json says; None where there is none.

    Raises:
        CheckpointError: it is there, and is none of ours.
    """
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}): tokenize again") from None
    if not isinstance(raw, Mapping) or raw.get("format") != "bloomery-tokens" or raw.get("version") != 1:
        raise CheckpointError(f"{path} does not describe a token file: move it away, or tokenize again")
    values: dict[str, Any] = {field.name: raw.get(field.name) for field in fields(About)}
    for name, value in values.items():
        wanted = str if name.endswith("sha256") or name == "job" else int
        needed = name in ("tokens", "documents", "bin_sha256", "idx_sha256")
        if not (isinstance(value, wanted) and not isinstance(value, bool) if value is not None else not needed):
            raise CheckpointError(f"{path}: {name} is {value!r}: tokenize again")
    return About(**values)


def refuse_existing(prefix: Path) -> None:
    """Refuse a place that holds a token file.

    Raises:
        UsageError: it does.
    """
    for suffix in (".bin", ".idx", ".json"):
        if with_suffix(prefix, suffix).exists():
            raise UsageError(f"{with_suffix(prefix, suffix)} is there already: delete it, or choose another place")
