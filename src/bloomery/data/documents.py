"""Documents out of files: text, lines of JSON, Parquet, and folders that `datasets` saved. Knows no token.

Files are cut into shards, which are read on their own and in any process; their documents in the order of the shards
are the documents of the files in order.
"""

import glob
import json
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bloomery.errors import MissingExtra, UsageError

SHARD_BYTES = 8 * 2**20
"""About how much of a source is one shard."""
LINES = (".jsonl", ".ndjson", ".json")
PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip")
BINARY = (".bin", ".idx", ".safetensors", ".npy", ".npz")
MARK = "\ufeff"
"""A byte order mark: at the beginning of a file it says how the file is written, and is no part of the text."""
ROWS = 1024
"""Rows of a table that are held in memory at a time."""


class Shard(NamedTuple):
    """A piece of the text: whole text files, bytes of lines, row groups of Parquet or record batches of Arrow."""

    kind: Literal["text", "lines", "parquet", "arrow"]
    files: tuple[str, ...]
    """One file, or for text any number."""
    start: int
    stop: int
    """Bytes of lines, row groups or record batches: the first one, and that after the last."""
    size: int
    """Bytes, for whoever waits."""


def find_files(option: str, patterns: Sequence[str]) -> tuple[Path, ...]:
    """The files and `datasets` folders that names, folders or patterns stand for: each once, in the order of the
    patterns, then by name. A folder stands for all files in it, at any depth, whose names do not begin with a dot.

    Raises:
        UsageError: a pattern stands for no file.
    """
    found: dict[Path, Path] = {}
    for pattern in map(os.path.expanduser, patterns):
        # A name that is there is taken as it is written, even if it holds the letters of a pattern.
        names = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if Path(pattern).is_dir():
            files = _files_in(Path(pattern))
        else:  # the folders that '**' meets are passed over: their files are met too
            files = [path for path in map(Path, names) if path.is_file() or _is_dataset(path)]
        if not files:
            raise UsageError(f"{option}: no file matches '{pattern}' in {Path.cwd()}: correct it, or create the file")
        for file in files:
            found.setdefault(file.resolve(), file)
    return tuple(found.values())


def _files_in(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        parts = ", ".join(sorted(part.name for part in folder.iterdir() if _is_dataset(part)))
        raise UsageError(f"{folder} holds several splits ({parts}): name one, such as {folder}/train")
    if _is_dataset(folder):
        return [folder]
    inside = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [folder / path for path in inside if not any(part.startswith(".") for part in path.parts)]


def _is_dataset(path: Path) -> bool:
    """Whether `Dataset.save_to_disk` wrote the folder."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def read_texts(files: Sequence[Path]) -> Iterator[str]:
    """The documents of text files, one at a time, every byte of theirs kept but a byte order mark at the beginning.

    Raises:
        UsageError: a file cannot be read, or is not UTF-8.
    """
    for file in files:
        try:
            yield file.read_bytes().decode("utf-8").removeprefix(MARK)  # utf-8-sig would count bytes from behind it
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise UsageError(f"{file} is not UTF-8 at byte {error.start}: convert it") from None


def plan_shards(files: Sequence[Path]) -> list[Shard]:
    """Cut files and `datasets` folders into shards. Depends on the files alone.

    Raises:
        UsageError: a file cannot be read, or is of a kind that is not read.
        MissingExtra: a table needs pyarrow.
    """
    shards: list[Shard] = []
    for file in files:
        try:
            shards += _shards_of(file)
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror or error}") from None
    return _together(shards)


def _shards_of(file: Path) -> list[Shard]:
    suffix = file.suffix.lower()
    if suffix in PACKED:
        raise UsageError(f"{file} is packed: unpack it first")
    if suffix in BINARY:
        raise UsageError(f"{file} is no text, JSON lines, Parquet or Arrow: leave it out")
    if file.is_dir():
        return [shard for part in _dataset_files(file) for shard in _arrow_shards(part)]
    if suffix == ".parquet":
        return _parquet_shards(file)
    if suffix == ".arrow":
        return _arrow_shards(file)
    size = file.stat().st_size
    if suffix not in LINES:
        return [Shard("text", (str(file),), 0, size, size)]
    starts = range(0, size, SHARD_BYTES)
    return [Shard("lines", (str(file),), at, min(at + SHARD_BYTES, size), min(SHARD_BYTES, size - at)) for at in starts]


def _together(shards: Sequence[Shard]) -> list[Shard]:
    """Small text files that follow each other are one shard."""
    joined: list[Shard] = []
    for shard in shards:
        last = joined[-1] if joined else None
        if last and shard.kind == last.kind == "text" and last.size + shard.size <= SHARD_BYTES:
            joined[-1] = last._replace(files=last.files + shard.files, size=last.size + shard.size)
        else:
            joined.append(shard)
    return joined


def _dataset_files(folder: Path) -> list[Path]:
    try:
        rows = json.loads((folder / "state.json").read_bytes())["_data_files"]
        return [folder / Path(row["filename"]).name for row in rows]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{folder / 'state.json'} names no files: save the dataset again") from None


def _grouped(file: Path, kind: Literal["parquet", "arrow"], sizes: Sequence[int]) -> list[Shard]:
    """Pieces of a table of given sizes, as shards of about SHARD_BYTES."""
    shards: list[Shard] = []
    for number, size in enumerate(sizes):
        if shards and shards[-1].size + size <= SHARD_BYTES:
            shards[-1] = shards[-1]._replace(stop=number + 1, size=shards[-1].size + size)
        else:
            shards.append(Shard(kind, (str(file),), number, number + 1, size))
    return shards


def _parquet_shards(file: Path) -> list[Shard]:
    pyarrow = _pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            groups = table.metadata.num_row_groups
            sizes = [table.metadata.row_group(number).total_byte_size for number in range(groups)]
    except (pyarrow.ArrowInvalid, pyarrow.ArrowException) as error:
        raise UsageError(f"{file} is no Parquet file ({_first_line(error)}): write it again") from None
    return _grouped(file, "parquet", sizes)


def _arrow_shards(file: Path) -> list[Shard]:
    return _grouped(file, "arrow", [batch.nbytes for batch in _arrow_batches(file)])


def _arrow_batches(file: Path) -> Iterator[Any]:
    """Record batches of an Arrow stream, mapped: passing over one reads its header only."""
    pyarrow = _pyarrow()
    try:
        with pyarrow.memory_map(str(file)) as mapped, pyarrow.ipc.open_stream(mapped) as stream:
            yield from stream
    except (pyarrow.ArrowInvalid, pyarrow.ArrowException) as error:
        raise UsageError(f"{file} is no Arrow stream ({_first_line(error)}): write it again") from None


def _pyarrow() -> Any:
    try:
        for part in ("pyarrow.ipc", "pyarrow.parquet"):
            import_module(part)
        return import_module("pyarrow")
    except ImportError:
        raise MissingExtra("pyarrow", "data") from None


def read_shard(shard: Shard, keys: Sequence[str] = ("text",)) -> Iterator[str]:
    """The documents of a shard.

    Args:
        keys: fields of a row whose texts are its document, joined by a newline. Text files have none.

    Raises:
        UsageError: what is there is no text, or has no such field.
    """
    if shard.kind == "text":
        yield from read_texts([Path(file) for file in shard.files])
        return
    file = Path(shard.files[0])
    rows = {"lines": _line_rows, "parquet": _parquet_rows, "arrow": _arrow_rows}[shard.kind]
    try:
        for where, row in rows(file, shard, keys):
            yield _document(f"{file} {where}", row, keys)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}") from None


def read_documents(files: Sequence[Path], keys: Sequence[str] = ("text",)) -> Iterator[str]:
    """All documents of files and `datasets` folders, in order; raises as `plan_shards` and `read_shard`."""
    for shard in plan_shards(files):
        yield from read_shard(shard, keys)


def _document(where: str, row: Any, keys: Sequence[str]) -> str:
    if not isinstance(row, dict):
        raise UsageError(f"{where}: no object with fields, but {type(row).__name__}: write one object a line")
    for key in keys:
        if not isinstance(row.get(key), str):
            has = f"is {type(row[key]).__name__}, not text" if key in row else f"is not there, but {', '.join(row)}"
            raise UsageError(f"{where}: field '{key}' {has}: name other --keys, or mend it")
    text = "\n".join(row[key] for key in keys)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where}: half a surrogate pair, which is no character: mend it") from None
    return text


def _line_rows(file: Path, shard: Shard, keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The lines that begin in the shard's bytes; lines of spaces are none."""
    with file.open("rb") as lines:
        if shard.start:
            lines.seek(shard.start - 1)
            lines.readline()  # the line before, which another shard has
        while (at := lines.tell()) < shard.stop:
            line = lines.readline()
            if not line.removeprefix(b"" if at else MARK.encode()).strip():
                continue
            try:
                yield f"at byte {at}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{file} at byte {at} is no line of JSON ({_first_line(error)}): mend it") from None


def _parquet_rows(file: Path, shard: Shard, keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
    pyarrow = _pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            _check_columns(file, table.schema_arrow.names, keys)
            groups = list(range(shard.start, shard.stop))
            number = sum(table.metadata.row_group(group).num_rows for group in range(shard.start))
            for batch in table.iter_batches(batch_size=ROWS, row_groups=groups, columns=list(keys)):
                for row in batch.to_pylist():
                    yield f"row {number}", row
                    number += 1
    except (pyarrow.ArrowInvalid, pyarrow.ArrowException) as error:
        raise UsageError(f"{file} cannot be read as Parquet ({_first_line(error)}): write it again") from None


def _arrow_rows(file: Path, shard: Shard, keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
    number = 0
    for place, batch in enumerate(_arrow_batches(file)):
        if place >= shard.stop:
            return
        if place >= shard.start:
            _check_columns(file, batch.schema.names, keys)
            for first in range(0, batch.num_rows, ROWS):
                for offset, row in enumerate(batch.slice(first, ROWS).select(list(keys)).to_pylist()):
                    yield f"row {number + first + offset}", row
        number += batch.num_rows


def _check_columns(file: Path, columns: Sequence[str], keys: Sequence[str]) -> None:
    for key in keys:
        if key not in columns:
            raise UsageError(f"{file} has no column '{key}', but {', '.join(columns)}: name one of them as --keys")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
