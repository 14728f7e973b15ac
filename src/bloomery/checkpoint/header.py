"""The header of a safetensors file, read and checked before a byte of a tensor is. Knows no family and no memory.

The safetensors library takes the same name twice without a word and rarely says which tensor is wrong. A file that it
refuses is refused here too.
"""

import json
import math
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from bloomery.errors import CheckpointError

LENGTH = 8
"""Bytes before the header: its length, little-endian."""

MOST_HEADER = 100_000_000
"""Bytes: the format's own limit."""

MOST_DIMENSIONS = 64
"""As many as torch can print; the product of very many would take for ever."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's words for whole bytes; what packs several numbers into one byte is not read."""


class Kind(NamedTuple):
    """What a tensor is, without its numbers."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class Entry(NamedTuple):
    """A tensor's kind, and the bytes of the file that hold it: from `begin` to before `end`."""

    kind: Kind
    begin: int
    end: int


class Header(NamedTuple):
    """What a file says of itself: its tensors in the order of their bytes, and words about them."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: Path, file: BinaryIO, size: int) -> Header:
    """The header of an open file of `size` bytes.

    Raises:
        CheckpointError: it is damaged, or would have us read a byte twice, none, or outside of the file.
    """
    length = int.from_bytes(file.read(LENGTH), "little")
    if size < LENGTH:
        raise CheckpointError(f"{path} is damaged (it ends after {size} bytes): fetch it again")
    if length > MOST_HEADER or LENGTH + length > size:
        reason = "over the format's limit" if length > MOST_HEADER else f"in a file of {size:,}"
        claim = f"it claims a header of {length:,} bytes, {reason}"
        raise CheckpointError(f"{path} is damaged or no safetensors file ({claim}): fetch it again")
    raw = file.read(length)
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        described = dict(found)
        metadata = described.pop("__metadata__", None)
        metadata = {} if metadata is None else metadata
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its __metadata__ holds something else than words")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged (no header: {_line(error)}): fetch it again") from None
    first = LENGTH + length
    entries = {name: _entry(path, name, value, first, size) for name, value in described.items()}
    entries = dict(sorted(entries.items(), key=lambda item: item[1].begin + item[1].end))
    _check_cover(path, entries, first, size)
    return Header(entries, metadata)


def shown(name: str) -> str:
    """A tensor's name as one line can show it, in quotes."""
    return f"'{name}'" if name.isprintable() and len(name) <= 200 else ascii(name[:200])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"it has {shown(twice)} twice")
    return found


def _no_number(word: str) -> None:
    raise ValueError(f"it holds {word}")


def _line(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split("\n")[0]


def _entry(path: Path, name: str, value: Any, first: int, size: int) -> Entry:
    """One tensor, its bytes counted from the beginning of the file."""

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {shown(name)} {reason}: fetch the file again")

    if not isinstance(value, dict):
        raise refuse("is not described")
    dtype: Any = value.get("dtype")
    shape: Any = value.get("shape")
    offsets: Any = value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: tensor {shown(name)} is of dtype {ascii(dtype)[:80]}, which is not read here: "
            "get the model in fp32, fp16 or bf16"
        )
    if not _are_counts(shape) or len(shape) > MOST_DIMENSIONS:
        raise refuse(f"has the impossible shape {str(shape)[:80]}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(f"has the impossible offsets {str(offsets)[:80]}")
    begin, end = first + offsets[0], first + offsets[1]
    if end > size:
        raise refuse(f"ends at byte {end:,}, but the file at {size:,}")
    kind = Kind(DTYPES[dtype], tuple(shape))
    needed = math.prod(shape) * kind.dtype.itemsize
    if needed != end - begin:
        raise refuse(f"needs {needed:,} bytes as {dtype} {str(shape)[:80]}, but has {end - begin:,}")
    return Entry(kind, begin, end)


def _are_counts(value: Any) -> bool:
    """Of a size that an address can have: torch counts no further."""
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)


def _check_cover(path: Path, entries: dict[str, Entry], first: int, size: int) -> None:
    """Every byte belongs to one tensor: what is left over could hold anything, what is shared was meant for one."""
    end, before = first, "the header"
    for name, entry in entries.items():
        if entry.begin < end:
            raise CheckpointError(f"{path}: tensors {before} and {shown(name)} share bytes: fetch the file again")
        if entry.begin > end:
            raise CheckpointError(
                f"{path}: {entry.begin - end:,} bytes before tensor {shown(name)} belong to none: fetch the file again"
            )
        end, before = entry.end, shown(name)
    if end < size:
        raise CheckpointError(
            f"{path}: {size - end:,} bytes after its last tensor belong to none: fetch the file again"
        )
