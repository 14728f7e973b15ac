"""Token files are Megatron's, byte for byte; what is no whole one is refused in one line."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from bloomery.data.documents import find_files
from bloomery.data.tokenize import tokenize
from bloomery.data.tokens import TokenFile, narrowest, read_tokens, write_index
from bloomery.errors import CheckpointError
from megatron import read_documents, write_documents

DOCUMENTS = [[[1, 2, 3], [4]], [[5, 6]], [], [[], [7, 8, 9, 10]]]
"""Of sequences, as --split-sentences makes them; one document is empty."""


def test_an_index_is_byte_for_byte_what_the_format_says() -> None:
    file = io.BytesIO()
    write_index(file, np.dtype("<u2"), np.array([3, 1], dtype=np.int32))
    expected = (
        "4d4d4944494458 0000  0100000000000000  08  0200000000000000  0300000000000000"
        "03000000 01000000"
        "0000000000000000 0600000000000000"
        "0000000000000000 0100000000000000 0200000000000000"
    )
    assert file.getvalue() == bytes.fromhex(expected)


def test_the_index_of_wide_tokens_counts_four_bytes_each() -> None:
    file = io.BytesIO()
    write_index(file, np.dtype("<i4"), np.array([3, 1], dtype=np.int32), np.array([0, 2]))
    assert file.getvalue()[17:18] == b"\x04"
    assert file.getvalue()[-24:] == bytes.fromhex("0c00000000000000 0000000000000000 0200000000000000")


@pytest.mark.parametrize("vocab_size", [300, 65499, 65500, 250880])
def test_the_number_type_is_the_one_that_megatron_takes(vocab_size: int) -> None:
    assert narrowest(vocab_size) == (np.uint16 if vocab_size < 65500 else np.int32)


@pytest.mark.parametrize("code", [1, 3, 4, 5, 8])
def test_files_of_megatron_are_read(tmp_path: Path, code: int) -> None:
    write_documents(tmp_path / "a.text", code, DOCUMENTS)
    for name in ("a.text", "a.text.bin", "a.text.idx"):
        found = read_tokens(tmp_path / name)
        assert found.about is None
        assert (found.tokens, found.sequences, found.documents) == (10, 5, 4)
        assert found.ids.tolist() == list(range(1, 11))
        assert found.ends().tolist() == [4, 6, 6, 10]
        assert found.largest() == 10
    (tmp_path / "a.idx").write_bytes(
        b""
    )  # of a prefix whose own end is like that of a file, the exact name comes first
    write_documents(tmp_path / "a.bin", code, DOCUMENTS)
    assert read_tokens(tmp_path / "a.bin").tokens == 10
    assert found.source().ends.tolist() == [4, 6, 10]
    part = found.source(range(1, 4))
    assert part.ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert part.ends.tolist() == [2, 6]
    assert len(found.source(range(4, 4))) == 0


def test_an_empty_file_of_megatron_is_read(tmp_path: Path) -> None:
    write_documents(tmp_path / "none", 8, [])
    found = read_tokens(tmp_path / "none")
    assert (found.tokens, found.documents, found.ids.tolist(), found.largest()) == (0, 0, [], -1)


def test_a_sequence_of_less_than_nothing_is_refused(tmp_path: Path) -> None:
    write_documents(tmp_path / "a", 8, [[[1, 2, 3]], [[4]], [[5, 6]]])
    raw = (tmp_path / "a.idx").read_bytes()
    sizes, begins = np.array([7, -3, 2], "<i4").tobytes(), np.array([0, 14, 8], "<i8").tobytes()  # 6 in all, as before
    (tmp_path / "a.idx").write_bytes(raw[:34] + sizes + begins + raw[34 + 36 :])
    with pytest.raises(CheckpointError, match="sequences do not follow each other"):
        read_tokens(tmp_path / "a")


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ours(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> TokenFile:
    return tokenize(find_files("x", [str(folder)]), tmp_path / "ours", tokenizer, eod=2)


def test_what_we_write_is_read_by_megatrons_rules(ours: TokenFile, texts: list[str], tokenizer: Tokenizer) -> None:
    found = read_documents(ours.prefix)
    assert [document[-1] for document in found] == [2] * len(texts)
    assert [tokenizer.decode(document[:-1], skip_special_tokens=False) for document in found] == texts
    assert not any({0, 1, 2, 3} & set(document[:-1]) for document in found)  # spelt out in a text, they are text


def test_the_json_beside_says_what_is_there(ours: TokenFile, texts: list[str]) -> None:
    raw = json.loads(ours.prefix.with_name("ours.json").read_text())
    assert raw["documents"] == len(texts)
    assert raw["tokens"] == ours.prefix.with_name("ours.bin").stat().st_size // 2
    assert raw["text_bytes"] == sum(len(text.encode()) for text in texts)
    assert (raw["eod"], raw["vocab_size"]) == (2, 300)
    ours.check_hashes()


def cut(raw: bytes) -> bytes:
    return raw[:-2]


def flip(place: int, value: int) -> Callable[[bytes], bytes]:
    def flipped(raw: bytes) -> bytes:
        at = place % len(raw)
        return raw[:at] + bytes([value]) + raw[at + 1 :]

    return flipped


@pytest.mark.parametrize(
    ("suffix", "change", "said"),
    [
        ("idx", cut, "40 sequences and 40 documents"),
        ("idx", lambda raw: raw + b"\x00" * 40, "of text alone take"),
        ("idx", lambda raw: raw[:20], "is no token index"),
        ("idx", lambda raw: b"TNTIDX\x00\x00" + raw[8:], "is no token index"),
        ("idx", flip(9, 2), "version 2"),
        ("idx", flip(17, 6), "number type 6"),
        ("idx", flip(34, 0xEE), "sequences do not follow each other from 0 on"),
        ("idx", flip(37, 0xFF), "sequences do not follow each other from 0 on"),
        ("idx", flip(34 + 4 * 40 + 8, 0x77), "sequences do not follow each other"),
        ("idx", flip(34 + 12 * 40, 1), "documents do not follow each other"),
        ("idx", flip(34 + 12 * 40 + 80, 0xFF), "documents do not follow each other"),
        ("idx", flip(-8, 41), "its documents end at sequence 41 of 40"),
        ("bin", cut, "and its index"),
        ("bin", lambda raw: raw[:-1], "no multiple of a token's 2"),
        ("json", lambda raw: b"{", "cannot be read as JSON"),
        ("json", lambda raw: b"[]", "does not describe a token file"),
        ("json", lambda raw: raw.replace(b'"eod": 2', b'"eod": "2"'), "eod is '2'"),
        ("json", lambda raw: raw.replace(b'"documents": 40', b'"documents": 41'), "belong to different files"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(
    ours: TokenFile, suffix: str, change: Callable[[bytes], bytes], said: str
) -> None:
    path = ours.prefix.with_name(f"ours.{suffix}")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError, match=said) as caught:
        read_tokens(ours.prefix)
    assert "\n" not in str(caught.value)
    assert "ours." in str(caught.value)


def flipped_last(raw: bytes) -> bytes:
    return raw[:-8] + bytes([raw[-8] ^ 1]) + raw[-7:]


@pytest.mark.parametrize("suffix", ["idx", "bin"])
def test_a_missing_file_is_refused(ours: TokenFile, suffix: str) -> None:
    path = ours.prefix.with_name(f"ours.{suffix}")
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"ours\.{suffix} cannot be read"):
        read_tokens(ours.prefix)


def test_a_flipped_bit_is_found_by_its_hash(ours: TokenFile) -> None:
    path = ours.prefix.with_name("ours.bin")
    path.write_bytes(flipped_last(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"ours\.bin is not as it was written"):
        read_tokens(ours.prefix).check_hashes()


def test_a_file_without_hashes_cannot_be_compared(ours: TokenFile) -> None:
    ours.prefix.with_name("ours.json").unlink()
    with pytest.raises(CheckpointError, match=r"ours\.json is missing"):
        read_tokens(ours.prefix).check_hashes()
