"""Text files -> one token file: the job, its identity, and its order. Knows no format of files and no process."""

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from shutil import rmtree

from tokenizers import Tokenizer

from bloomery.data.bpe import tokenizer_hash, vocab_size_of
from bloomery.data.documents import Shard, plan_shards
from bloomery.data.encode import Encoder
from bloomery.data.job import describe_text
from bloomery.data.tokens import TokenFile, narrowest, prefix_of, read_tokens, refuse_existing, with_suffix
from bloomery.data.unfinished import Totals, Unfinished, folder_of, was_publishing
from bloomery.data.workers import encode_shards
from bloomery.disk.lock import only_writer
from bloomery.errors import UsageError
from bloomery.log import logger

Moved = Callable[[int, Totals], None]
"""Called with the bytes of a shard that is done, and with all there is now."""


def tokenize(
    files: Sequence[Path],
    prefix: Path,
    tokenizer: Tokenizer,
    *,
    eod: int,
    keys: Sequence[str] = ("text",),
    jobs: int = 1,
    begun: Callable[[int, int, Totals], None] = lambda total, done, totals: None,
    moved: Moved = lambda size, totals: None,
) -> TokenFile:
    """Write PREFIX.bin, PREFIX.idx and PREFIX.json: every document of the files in order, each followed by `eod`.

    The bytes depend on the files, the keys, the tokenizer and `eod` alone, not on the jobs nor on how often the work
    was killed and begun again. Special tokens spelt out in a text are text, and an empty document is its end. A call
    that finds its own work done does nothing.

    Args:
        files: as `documents.find_files` gives them.
        prefix: the path without ".bin"; one with ".bin" or ".idx" is taken as well.
        eod: the id of the token that ends a document.
        keys: fields of a row that make its document, joined by a newline.
        jobs: processes; 1 works in this one. With more, a program must be importable (`if __name__ == "__main__"`).
        begun: called once with the bytes of all files, and what of it was done before.
        moved: called after each shard.

    Raises:
        UsageError: a file cannot be read or is no text, another token file is there, or the disk is full; what is done
            is kept then, and the same call goes on.
    """
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}: give 1 or more")
    prefix, shards = prefix_of(prefix), plan_shards(files)
    dtype = narrowest(vocab_size_of(tokenizer))
    try:
        job = _describe(shards, tokenizer, eod, keys)
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(
            prefix.with_name(f".{prefix.name}.lock"), lambda: logger.info("%s: another writes it", prefix)
        ):
            done = _finished(prefix, job)
            if done is not None:
                logger.info("%s holds these files already", prefix)
                return done
            _fill(shards, Unfinished(prefix, dtype, job), tokenizer, eod, keys, jobs, begun, moved)
            return read_tokens(prefix)
    except OSError as error:
        raise UsageError(
            f"{prefix} cannot be written: {error.strerror or error}: make room or choose another place; the same call "
            "then goes on where it was"
        ) from None


def _fill(
    shards: Sequence[Shard],
    unfinished: Unfinished,
    tokenizer: Tokenizer,
    eod: int,
    keys: Sequence[str],
    jobs: int,
    begun: Callable[[int, int, Totals], None],
    moved: Moved,
) -> None:
    first = unfinished.totals.shards
    if first:
        logger.info("%s: going on after %d of %d pieces", unfinished.prefix, first, len(shards))
    begun(sum(shard.size for shard in shards), sum(shard.size for shard in shards[:first]), unfinished.totals)
    encoder = Encoder(tokenizer, eod, unfinished.dtype, tuple(keys))
    with closing(unfinished), closing(encode_shards(shards[first:], encoder, jobs)) as encoded:
        for shard, result in zip(shards[first:], encoded, strict=True):
            unfinished.append(result)
            moved(shard.size, unfinished.totals)
    if unfinished.totals.documents == 0:
        rmtree(unfinished.folder)
        raise UsageError("there is no document in these files: name others")
    unfinished.publish(vocab_size=vocab_size_of(tokenizer), eod=eod, tokenizer_sha256=tokenizer_hash(tokenizer))


def _describe(shards: Sequence[Shard], tokenizer: Tokenizer, eod: int, keys: Sequence[str]) -> str:
    """All that decides the bytes, as text."""
    facts = describe_text(shards, keys) | {"eod": eod, "tokenizer": tokenizer_hash(tokenizer)}
    return json.dumps(facts, indent=1) + "\n"


def _finished(prefix: Path, job: str) -> TokenFile | None:
    """The file that this very job has made; None where nothing is there, or what the job had begun to publish.

    Raises:
        UsageError: something else is there.
    """
    if not with_suffix(prefix, ".idx").exists():
        if not was_publishing(prefix, job):
            refuse_existing(prefix)
        return None
    found = read_tokens(prefix)
    if found.about is None or found.about.job != sha256(job.encode()).hexdigest():
        raise UsageError(f"{prefix} holds the tokens of something else: delete it, or choose another place")
    rmtree(folder_of(prefix), ignore_errors=True)
    return found
