"""A safetensors file that lies about itself is refused in one line, before a tensor is made; what it says is held
against the safetensors library."""

import json
import os
import random
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bloomery.checkpoint.files import open_file
from bloomery.checkpoint.header import DTYPES
from bloomery.errors import CheckpointError

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


def entry(dtype: str, shape: list[Any], *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def write(file: Path, header: Any, data: int | bytes = 0, length: int | None = None) -> Path:
    """A file of a header, given as JSON or as its bytes, and of data, given or that many zeros."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = bytes(data) if isinstance(data, int) else data
    file.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + body)
    return file


def refused(file: Path, *fragments: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_file(file)
    message = str(caught.value)
    assert message.isprintable(), repr(message)
    assert str(file) in message
    for fragment in fragments:
        assert fragment in message, message
    assert re.search(r": [a-z][^:]+$", message), f"no advice at the end: {message}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


ONE = entry("F32", [2], 0, 8)
A_AND_B = {"a": ONE, "b": entry("F32", [2], 8, 16)}


@pytest.mark.parametrize("size", range(8))
def test_file_too_short_for_a_length_is_refused(file: Path, size: int) -> None:
    file.write_bytes(bytes(size))
    refused(file, f"after {size} bytes", "fetch")


@pytest.mark.parametrize("length", [100_000_001, 2**31, 2**63, 2**64 - 1])
def test_header_over_the_limit_is_refused(file: Path, length: int) -> None:
    refused(write(file, {"a": ONE}, 8, length=length), f"{length:,}", "limit", "fetch")


@pytest.mark.parametrize("more", [9, 1000, 99_999_000])
def test_header_longer_than_the_file_is_refused(file: Path, more: int) -> None:
    raw = len(json.dumps({"a": ONE}))
    refused(write(file, {"a": ONE}, 8, length=raw + more), f"{raw + more:,}", "fetch")


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"[]", b"null", b"7", b'"a"', b"\xff\xfe{}", b"<html></html>", b'{"a": NaN}', b"{'a': 1}"],
)
def test_header_that_is_no_json_object_is_refused(file: Path, header: bytes) -> None:
    refused(write(file, header), "no header", "fetch")


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_header_nested_without_end_is_refused(file: Path, opening: bytes) -> None:
    refused(write(file, b'{"a":' + opening * 200_000), "nested too deeply", "fetch")


def test_number_of_very_many_digits_is_refused(file: Path) -> None:
    refused(write(file, b'{"a": {"dtype": "F32", "shape": [' + b"9" * 100_000 + b'], "data_offsets": [0, 8]}}', 8))


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"__metadata__":{"a":"b"},"__metadata__":{},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"I32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    ],
)
def test_same_key_twice_is_refused(file: Path, header: bytes) -> None:
    """Which of them is meant? The library takes the last tensor of a name without a word."""
    refused(write(file, header, 8), "twice", "fetch")


@pytest.mark.parametrize("metadata", [[], 7, 0, "", "word", {"a": 1}, {"a": {"b": "c"}}])
def test_metadata_other_than_words_is_refused(file: Path, metadata: Any) -> None:
    refused(write(file, {"__metadata__": metadata, "a": ONE}, 8), "__metadata__", "fetch")


@pytest.mark.parametrize("value", [None, 3, "F32", [], [1, 2]])
def test_tensor_that_is_not_described_is_named(file: Path, value: Any) -> None:
    refused(write(file, {"a": ONE, "odd": value}, 8), "'odd'", "fetch")


@pytest.mark.parametrize("missing", ["dtype", "shape", "data_offsets"])
def test_tensor_without_a_fact_is_named(file: Path, missing: str) -> None:
    described = {key: value for key, value in ONE.items() if key != missing}
    refused(write(file, {"odd": described}, 8), "'odd'")


@pytest.mark.parametrize("dtype", ["F31", "f32", "float32", "", "F4", "F6_E2M3", None, 32, ["F32"], "F32\n" * 99])
def test_unknown_dtype_is_named(file: Path, dtype: Any) -> None:
    refused(write(file, {"odd": entry(dtype, [2], 0, 8)}, 8), "'odd'", ascii(dtype)[:9], "bf16")


@pytest.mark.parametrize(
    "shape", [[-2], [2.0], [True, 2], ["2"], [None], [[2]], 2, "2", None, {}, [2**63], [2**64, 0], [1] * 65 + [2]]
)
def test_impossible_shape_is_named(file: Path, shape: Any) -> None:
    refused(write(file, {"odd": entry("F32", shape, 0, 8)}, 8), "'odd'", "impossible shape", "fetch")


@pytest.mark.parametrize("shape", [[], [1], [3], [2, 2], [2**62, 2], [2**62, 2**62], [2**32, 2**32], [0]])
def test_shape_and_dtype_that_need_other_bytes_are_named(file: Path, shape: list[int]) -> None:
    """2^32 × 2^32 is 0 to a computer that counts in 64 bits."""
    refused(write(file, {"odd": entry("F32", shape, 0, 8)}, 8), "'odd'", str(shape), "has 8", "fetch")


def test_very_many_dimensions_are_refused_at_once(file: Path) -> None:
    refused(write(file, {"odd": entry("F32", [2**62] * 500_000, 0, 8)}, 8), "'odd'", "impossible shape")


@pytest.mark.parametrize(
    "offsets", [[0], [0, 4, 8], [], [8, 0], [-8, 0], [0, 8.0], [False, 8], ["0", "8"], None, 8, [0, 2**63], [2**70] * 2]
)
def test_impossible_offsets_are_named(file: Path, offsets: Any) -> None:
    refused(write(file, {"odd": ONE | {"data_offsets": offsets}}, 8), "'odd'", "impossible offsets", "fetch")


@pytest.mark.parametrize(("begin", "end"), [(0, 16), (8, 16), (2**40, 2**40 + 8), (2**62, 2**62 + 8)])
def test_tensor_outside_of_the_file_is_named(file: Path, begin: int, end: int) -> None:
    shape = [(end - begin) // 4]
    refused(write(file, {"odd": entry("F32", shape, begin, end)}, 8), "'odd'", "but the file at", "fetch")


@pytest.mark.parametrize(
    "header",
    [
        {"first": ONE, "second": ONE},
        {"first": ONE, "second": entry("F32", [2], 4, 12)},
        {"first": entry("F32", [3], 0, 12), "second": entry("F32", [1], 4, 8)},
        {"second": entry("F32", [2], 4, 12), "first": ONE},
    ],
)
def test_overlapping_tensors_are_named(file: Path, header: dict[str, Any]) -> None:
    refused(write(file, header, 12), "'first'", "'second'", "share bytes", "fetch")


def test_hole_between_tensors_is_named(file: Path) -> None:
    refused(write(file, {"a": ONE, "odd": entry("F32", [2], 12, 20)}, 20), "4 bytes before tensor 'odd'", "fetch")
    refused(write(file, {"odd": entry("F32", [2], 8, 16)}, 16), "8 bytes before tensor 'odd'")


@pytest.mark.parametrize("left", [1, 3, 7, 15])
def test_data_missing_at_the_end_names_the_tensor(file: Path, left: int) -> None:
    refused(write(file, A_AND_B, left), "'a'" if left < 8 else "'b'", "ends at byte", "fetch")


@pytest.mark.parametrize("more", [1, 4096])
def test_bytes_after_the_last_tensor_are_refused(file: Path, more: int) -> None:
    refused(write(file, A_AND_B, 16 + more), f"{more:,} bytes after its last tensor", "fetch")
    refused(write(file, {}, more), f"{more:,} bytes after its last tensor")


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2Jgone", "\0", "x" * 5000, "\ud800"])
def test_name_that_no_line_can_show_is_shown_all_the_same(file: Path, name: str) -> None:
    refused(write(file, {name: entry("F32", [3], 0, 8)}, 8), "needs 12 bytes")


@linux
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"model{suffix}")
    refused(tmp_path / f"model{suffix}", "no regular file")


@linux
def test_refusal_takes_no_memory(file: Path) -> None:
    """2 TB of zeros that take no place on the disk, and a shape to match, but a tensor too many."""
    size = 2 << 40
    write(file, {"a": entry("F32", [size // 4], 0, size), "b": entry("F32", [1], size - 4, size)})
    with file.open("r+b") as opened:
        opened.truncate(size + 8 + int.from_bytes(file.read_bytes()[:8], "little"))
    refused(file, "share bytes")


@linux
def test_file_larger_than_the_memory_is_mapped(file: Path) -> None:
    size = 2 << 40
    write(file, {"a": entry("F32", [size // 4], 0, size)})
    with file.open("r+b") as opened:
        opened.truncate(size + file.stat().st_size)
        opened.seek(-4, os.SEEK_END)
        opened.write(struct.pack("<f", 7.0))
    numbers = open_file(file).read("a")
    assert numbers.shape == (size // 4,)
    assert numbers[-1] == 7
    numbers[0] = 3
    assert open_file(file).read("a")[0] == 0


# --- against the library ---------------------------------------------------------------------------------------------


def library(file: Path) -> dict[str, torch.Tensor] | None:
    """What safetensors reads, or None where it refuses."""
    try:
        with safe_open(file, framework="pt") as opened:
            return dict(zip(opened.keys(), map(opened.get_tensor, opened.keys()), strict=True))
    except (SafetensorError, OSError, OverflowError):
        return None


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def test_every_dtype_is_read_as_the_library_reads_it(file: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randint(0, 2, (6, 8), generator=generator, dtype=torch.uint8)
    tensors = {word: numbers.view(dtype).clone() for word, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.empty(3, 0, 2, dtype=torch.bfloat16)}
    save_file(tensors, file, metadata={"format": "pt"})
    ours, theirs = open_file(file), library(file)
    assert theirs is not None
    assert set(ours.names) == set(theirs) == set(tensors)
    assert ours.metadata == {"format": "pt"}
    for name, tensor in theirs.items():
        got = ours.read(name)
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape) == (ours.kind(name).dtype, ours.kind(name).shape)
        assert bits(got) == bits(tensor)


@pytest.mark.parametrize("padding", range(1, 8))
def test_tensors_that_are_not_aligned_are_read_all_the_same(file: Path, padding: int, log: list[str]) -> None:
    """The format pads its header with spaces, but does not have to."""
    data = os.urandom(28)
    header = {"a": entry("F64", [2], 0, 16), "b": entry("F32", [2], 16, 24), "c": entry("BF16", [2], 24, 28)}
    raw = json.dumps(header).encode()
    write(file, raw + b" " * (-len(raw) % 8 + padding), data)
    ours, theirs = open_file(file), library(file)
    assert theirs is not None
    for name, tensor in theirs.items():
        assert bits(ours.read(name)) == bits(tensor)
        assert ours.read(name).data_ptr() % ours.kind(name).dtype.itemsize == 0
    assert len(log) == 1
    assert "not aligned" in log[0]


def change_a_number(header: dict[str, Any], dice: random.Random) -> None:
    described = header[dice.choice(list(header))]
    numbers = described[dice.choice(["shape", "data_offsets"])]
    if numbers:
        place = dice.randrange(len(numbers))
        numbers[place] = dice.choice([numbers[place] + dice.choice([-8, -4, -1, 1, 4, 8]), 0, 2**31, 2**63, -1])


def change_a_dtype(header: dict[str, Any], dice: random.Random) -> None:
    header[dice.choice(list(header))]["dtype"] = dice.choice([*DTYPES, "F4", "x"])


def swap_two(header: dict[str, Any], dice: random.Random) -> None:
    one, other = dice.choice(list(header)), dice.choice(list(header))
    header[one], header[other] = header[other], header[one]


def drop_one(header: dict[str, Any], dice: random.Random) -> None:
    del header[dice.choice(list(header))]


def copy_one(header: dict[str, Any], dice: random.Random) -> None:
    header["copy"] = dict(header[dice.choice(list(header))])


def one_more_dimension(header: dict[str, Any], dice: random.Random) -> None:
    header[dice.choice(list(header))]["shape"].append(dice.choice([0, 1, 2]))


CHANGES: list[Callable[[dict[str, Any], random.Random], None]] = [
    change_a_number,
    change_a_dtype,
    swap_two,
    drop_one,
    copy_one,
    one_more_dimension,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_the_library_refuses_is_refused_and_what_is_read_is_what_it_reads(
    file: Path, change: Callable[[dict[str, Any], random.Random], None]
) -> None:
    taken = 0
    for seed in range(150):
        dice = random.Random(seed)
        header = {
            "a": entry("F32", [2, 3], 0, 24),
            "b": entry("BF16", [4], 24, 32),
            "c": entry("U8", [], 32, 33),
            "d": entry("F16", [0, 5], 33, 33),
            "e": entry("I64", [1], 33, 41),
        }
        change(header, dice)
        write(file, header, dice.randbytes(41))
        theirs = library(file)
        try:
            ours = open_file(file)
        except CheckpointError:
            continue
        assert theirs is not None, header
        assert set(theirs) == set(ours.names)
        assert all(bits(ours.read(name)) == bits(tensor) for name, tensor in theirs.items()), header
        taken += 1
    assert taken or change is drop_one
    assert taken < 150 or change is swap_two


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits_of_a_header_never_escape_the_refusal(file: Path, seed: int) -> None:
    """Any byte of it, changed to any other: read as the library reads it, or refused as a checkpoint."""
    dice = random.Random(seed)
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, file)
    whole = file.read_bytes()
    for _ in range(400):
        broken = bytearray(whole)
        broken[dice.randrange(len(whole) - 32)] ^= 1 << dice.randrange(8)
        file.write_bytes(broken)
        theirs = library(file)
        try:
            ours = open_file(file)
        except CheckpointError:
            continue
        assert theirs is not None
        assert {name: bits(ours.read(name)) for name in ours.names} == {n: bits(t) for n, t in theirs.items()}
