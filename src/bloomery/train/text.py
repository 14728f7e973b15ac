"""The text of a run: its tokenizer, what it learns from, and the held-out sets. Knows no weights and no loop.

Text becomes token files in the run's folder, once; a resumed run takes those.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
from tokenizers import Tokenizer

from bloomery.checkpoint.folder import BESIDE_TOKENIZER, TOKENIZER_FILES, Folder, read_folder, tokenizer_of
from bloomery.data import bpe
from bloomery.data.documents import find_files, read_documents
from bloomery.data.ending import end_of_document, named_ends
from bloomery.data.merge import refuse_differences
from bloomery.data.order import Skips, quotas_of, split_documents
from bloomery.data.source import Source
from bloomery.data.tokenize import tokenize
from bloomery.data.tokens import TokenFile, prefix_of, read_tokens, with_suffix
from bloomery.errors import UsageError
from bloomery.hub.resolve import resolve
from bloomery.log import logger
from bloomery.text.tokenizer import read_tokenizer
from bloomery.train.model import Described
from bloomery.train.recipe.run_options import Data

Lengths = np.ndarray[tuple[int], np.dtype[np.int64]]


class Entry(NamedTuple):
    """One entry of data.train or data.valid, as it is written: a token file, or files of text."""

    written: str
    name: str
    prefix: Path | None
    files: tuple[Path, ...]

    @property
    def paths(self) -> set[Path]:
        """What it is read from, to be compared with others."""
        return {self.prefix.resolve()} if self.prefix is not None else {file.resolve() for file in self.files}


class Words(NamedTuple):
    """A tokenizer, its files as they are written beside a model, the id that ends a document, and which ids are special
    in the words of config.json."""

    tokenizer: Tokenizer
    files: dict[str, bytes]
    end: int
    special: dict[str, int]


@dataclass(frozen=True)
class Text:
    """What a run learns from and is measured on. `words` is None where all of it came as tokens."""

    words: Words | None
    train: list[Source]
    valid: dict[str, Source]
    entries: tuple[tuple[str, ...], tuple[str, ...]]
    """Names of what is learned from and held out, for people."""

    def byte_lengths(self, vocab_size: int) -> Lengths | None:
        """(V,) bytes that each token stands for; None where that is not known: without a tokenizer, or with one whose
        tokens stand for different text at different places."""
        if self.words is None or not bpe.is_byte_level(self.words.tokenizer):
            return None
        lengths = np.zeros(vocab_size, dtype=np.int64)
        known = bpe.byte_lengths(self.words.tokenizer)
        lengths[: len(known)] = known[:vocab_size]
        return lengths


class Planned(NamedTuple):
    """The text of a run before any of it is read."""

    train: tuple[Entry, ...]
    valid: tuple[Entry, ...]


def plan_text(data: Data) -> Planned:
    """Which files are meant.

    Raises:
        UsageError: a pattern matches nothing, a file is on both sides, two held-out sets have one name, or what is said
            of the order of samples cannot be.
    """
    if data.weights:
        quotas_of(data.weights)
    Skips(data.skip)
    train = tuple(_entry("data.train", entry) for entry in data.train)
    valid = tuple(_entry("data.valid", entry, named=True) for entry in data.valid)
    learned = {path: entry for entry in train for path in entry.paths}
    for entry in valid:
        both = sorted(path for path in entry.paths if path in learned)
        if both:
            raise UsageError(f"data.train and data.valid both hold {both[0]}: held-out text must not be learned from")
    if data.split:  # each is cut, and measured by its name
        names = [entry.name for entry in train]
        train = tuple(entry._replace(name=entry.written) if names.count(entry.name) > 1 else entry for entry in train)
    names = [entry.name for entry in (train if data.split else valid)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        said = f"data.train names '{twice}' twice" if data.split else f"data.valid has two sets named '{twice}'"
        raise UsageError(f"{said}: {'leave one out' if data.split else 'write them as NAME=PATH'}")
    if data.keys != Data.keys and not any(file.suffix != ".txt" for entry in (*train, *valid) for file in entry.files):
        raise UsageError("data.keys is for rows of JSON lines and tables, and data.train and data.valid name none")
    return Planned(train, valid)


def read_text(data: Data, planned: Planned, words: Words | None, vocab_size: int, folder: Path, resumed: bool) -> Text:
    """The tokens of a run, written into `folder` where they come as text.

    Args:
        resumed: what `folder` holds is taken as it is, whatever has become of the text.

    Raises:
        UsageError: a file cannot be read, or holds a token that the model has not.
        CheckpointError: a token file is damaged.
    """

    def tokens(entry: Entry, kind: str, number: int) -> TokenFile:
        if entry.prefix is not None:
            found = read_tokens(entry.prefix)
            _refuse_large(found, vocab_size)
            made_with = found.about.tokenizer_sha256 if found.about else None
            if words is not None and made_with not in (None, bpe.tokenizer_hash(words.tokenizer)):
                raise UsageError(
                    f"{entry.prefix} was made with another tokenizer than this run has: tokenize it anew, or name with "
                    "data.tokenizer the one it was made with"
                )
            return found
        if words is None:
            raise UsageError(f"{entry.files[0]} is text, and there is no tokenizer: name one with data.tokenizer")
        # Which text it was is part of the name, so that another held-out set is never taken for this one.
        which = crc32("\n".join([entry.written, *data.keys]).encode())
        prefix = folder / f"{kind}-{number}-{which:08x}"
        if resumed and with_suffix(prefix, ".idx").is_file():
            found = read_tokens(prefix)
            found.check_hashes()
            return found
        return tokenize(entry.files, prefix, words.tokenizer, eod=words.end, keys=data.keys)

    train = [tokens(entry, "train", number) for number, entry in enumerate(planned.train)]
    held_out = [tokens(entry, "valid", number) for number, entry in enumerate(planned.valid)]
    refuse_differences([*train, *held_out])
    valid = {entry.name: found.source() for entry, found in zip(planned.valid, held_out, strict=True)}
    sources = [found.source() for found in train]
    if data.split:
        sources = []
        for entry, found in zip(planned.train, train, strict=True):
            learn, measure, _ = split_documents(found.documents, data.split)
            if not learn or not measure:
                raise UsageError(
                    f"data.split {data.split} leaves {entry.name}, of {found.documents} documents, {len(learn)} to "
                    f"learn from and {len(measure)} to measure on: change it"
                )
            sources.append(found.source(learn))
            valid[entry.name] = found.source(measure)
    total, held = sum(map(len, sources)), sum(map(len, valid.values()))
    logger.info("%s tokens to learn from, %s held out", f"{total:,}", f"{held:,}")
    names = (tuple(_shown(entry) for entry in planned.train), tuple(_shown(entry) for entry in planned.valid))
    return Text(words, sources, valid, names)


def _refuse_large(found: TokenFile, vocab_size: int) -> None:
    """A token that the model has not would end the run in the middle."""
    known = found.about is not None and found.about.vocab_size is not None
    if not known and found.dtype.kind == "i" and found.smallest() < 0:
        raise UsageError(f"{found.prefix} holds token {found.smallest()}, which no tokenizer makes: tokenize it anew")
    largest = found.about.vocab_size - 1 if found.about and found.about.vocab_size else found.largest()
    if largest >= vocab_size:
        raise UsageError(f"{found.prefix} holds token {largest}, and the model has {vocab_size}: take another")


def fingerprint(text: Text) -> list[str]:
    """What a run has learned from so far must be what it goes on with: sha256 of each source's tokens where it is
    known, and how many there are."""
    return [f"{len(source)} {source.sha256 or ''}".rstrip() for source in text.train]


def find_words(data: Data, planned: Planned, described: Described, folder: Path, resumed: bool) -> Words | None:
    """The tokenizer: the one in `folder`, where a run is gone on with that has begun with it; the one named; that of
    the model; or one learned from the training text. None where there is no text and none is named.

    Raises:
        UsageError: it cannot be read or learned, or has more tokens than the model.
    """
    vocab_size, texts = described.config.vocab_size, [file for entry in planned.train for file in entry.files]
    if resumed and (folder / TOKENIZER_FILES[0]).is_file():
        words = _read_words(folder / TOKENIZER_FILES[0])
    elif data.tokenizer or (described.folder is not None and described.folder.tokenizer is not None):
        words = _named_words(data.tokenizer, described)
    elif described.folder is not None and texts:
        raise UsageError(f"{described.folder.path} has no tokenizer: name one with data.tokenizer, or give token files")
    elif texts:
        logger.info("learning a vocabulary of %d tokens from %d files", vocab_size, len(texts))
        learned = bpe.train_tokenizer(read_documents(texts, data.keys), vocab_size)
        written = {name: text.encode() for name, text in bpe.tokenizer_files(learned, described.seq_len).items()}
        words = Words(learned, written, bpe.EOS, dict(bpe.SPECIAL_IDS))
    else:
        return None
    size = bpe.vocab_size_of(words.tokenizer)
    if size > vocab_size:
        raise UsageError(f"the tokenizer has {size} tokens, and the model {vocab_size}: give the model as many")
    return words


def _entry(option: str, written: str, *, named: bool = False) -> Entry:
    """NAME=PATH, or a path alone; a file whose name holds a = is itself."""
    name, equals, path = written.partition("=")
    there = Path(written).exists() or with_suffix(Path(written), ".idx").is_file()
    if there or not (named and equals and name and path):
        name, path = "", written
    prefix = prefix_of(Path(path).expanduser())
    if with_suffix(prefix, ".idx").is_file():
        return Entry(written, name or prefix.name, prefix, ())
    files = find_files(option, [path])
    return Entry(written, name or files[0].stem, None, files)


def _shown(entry: Entry) -> str:
    return entry.prefix.name if entry.prefix is not None else ", ".join(file.name for file in entry.files)


def _named_words(named: str, described: Described) -> Words:
    folder: Folder | None = described.folder
    if named and Path(named).is_file():
        return _read_words(Path(named))
    alone = tokenizer_of(Path(named)) if named and Path(named).is_dir() else None
    if alone is not None:
        return _read_words(alone)
    if named:
        folder = read_folder(resolve(named))
    if folder is None or folder.tokenizer is None:
        raise UsageError(f"data.tokenizer '{named}' has no tokenizer.json: name another")
    return _read_words(folder.tokenizer)


def _read_words(file: Path) -> Words:
    """A tokenizer and all files that belong to it."""
    tokenizer = read_tokenizer(file)
    files = {file.name: file.read_bytes()}
    for beside in (file.with_name(name) for name in BESIDE_TOKENIZER):
        if beside.is_file():
            files[beside.name] = beside.read_bytes()
    special = special_ids(tokenizer, files.get("tokenizer_config.json"))
    return Words(tokenizer, files, end_of_document(tokenizer, named_ends(file)), special)


def special_ids(tokenizer: Tokenizer, described: bytes | None) -> dict[str, int]:
    """The special tokens that tokenizer_config.json names, as config.json names them."""
    raw = json.loads(described) if described else {}
    found: dict[str, int] = {}
    for kind in ("bos", "eos", "pad", "unk"):
        token = raw.get(f"{kind}_token")
        index = tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token) if token else None
        if index is not None:
            found[f"{kind}_token_id"] = index
    return found
