"""Several token files -> one. Knows no text and no tokenizer."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import BinaryIO

import numpy as np

from bloomery.data.tokens import (
    About,
    TokenFile,
    hash_of,
    prefix_of,
    read_tokens,
    refuse_existing,
    with_suffix,
    write_index,
)
from bloomery.data.unfinished import folder_of, publish
from bloomery.disk.lock import only_writer
from bloomery.errors import CheckpointError, UsageError
from bloomery.log import logger

PIECE = 8 * 2**20


def merge_tokens(prefixes: Sequence[Path], target: Path) -> TokenFile:
    """One token file that holds the documents of several, in their order.

    Raises:
        UsageError: they are of different tokenizers or number types, or the target is there already.
        CheckpointError: one of them is damaged.
    """
    if not prefixes:
        raise UsageError("no token files to merge: name their prefixes")
    files, target = [read_tokens(prefix) for prefix in prefixes], prefix_of(target)
    refuse_differences(files)
    for file in files[1:]:
        if file.dtype != files[0].dtype:
            raise UsageError(
                f"{file.prefix} has {file.dtype} tokens, and {files[0].prefix} {files[0].dtype}: tokenize one anew"
            )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(f".{target.name}.lock")
        with only_writer(lock, lambda: logger.info("%s: another writes it", target)):
            refuse_existing(target)
            _write(files, target)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror or error}: choose another place") from None
    return read_tokens(target)


def refuse_differences(files: Sequence[TokenFile]) -> None:
    """Tokens of two tokenizers together would be nonsense that nobody sees.

    Raises:
        UsageError: two files say that they were made with different ones.
    """
    first = files[0]
    for file in files[1:]:
        if first.about is None or file.about is None:
            continue
        for what in ("tokenizer_sha256", "eod", "vocab_size"):
            ours, theirs = getattr(first.about, what), getattr(file.about, what)
            if ours is not None and theirs is not None and ours != theirs:
                raise UsageError(
                    f"{file.prefix} and {first.prefix} differ in {what} ({theirs}, {ours}), so that their tokens mean "
                    "different text: tokenize one anew"
                )
    unknown = [str(file.prefix) for file in files if file.about is None]
    if unknown:
        logger.warning(
            "%s: no .json says with which tokenizer it was made: take care that it is one", ", ".join(unknown)
        )


def _write(files: Sequence[TokenFile], target: Path) -> None:
    folder = folder_of(target)
    rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        with (folder / "tokens.bin").open("wb") as out:
            for file in files:
                _copy(file, out)
        lengths = np.concatenate([file.lengths for file in files])
        before = np.cumsum([0, *(file.sequences for file in files)])
        bounds = [file.first_sequences[:-1] + at for file, at in zip(files, before, strict=False)]
        with (folder / "tokens.idx").open("wb") as index:
            write_index(index, files[0].dtype, lengths, np.concatenate([*bounds, before[-1:]]))
        publish(folder, target, _about(files, hash_of(folder / "tokens.bin"), hash_of(folder / "tokens.idx")))
    except BaseException:
        rmtree(folder, ignore_errors=True)
        raise


def _copy(source: TokenFile, out: BinaryIO) -> None:
    """Copy a file's tokens to the end of another, and compare them with their hash where there is one."""
    digest, path = sha256(), with_suffix(source.prefix, ".bin")
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            out.write(piece)
    if source.about is not None and digest.hexdigest() != source.about.bin_sha256:
        raise CheckpointError(f"{path} is not as it was written: a byte of it has changed; tokenize again")


def _about(files: Sequence[TokenFile], bin_sha256: str, idx_sha256: str) -> About:
    known = [file.about for file in files if file.about is not None]
    whole = known if len(known) == len(files) else []  # else a part of the file would be spoken for
    sizes = [about.text_bytes for about in whole]
    return About(
        tokens=sum(file.tokens for file in files),
        documents=sum(file.documents for file in files),
        bin_sha256=bin_sha256,
        idx_sha256=idx_sha256,
        vocab_size=whole[0].vocab_size if whole else None,
        eod=whole[0].eod if whole else None,
        tokenizer_sha256=whole[0].tokenizer_sha256 if whole else None,
        text_bytes=sum(size for size in sizes if size is not None) if sizes and None not in sizes else None,
    )
