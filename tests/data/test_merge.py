"""Merged token files hold the documents of all, in order; files that do not belong together are refused."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bloomery.data.bpe import train_tokenizer
from bloomery.data.merge import merge_tokens
from bloomery.data.tokenize import tokenize
from bloomery.data.tokens import read_tokens
from bloomery.errors import CheckpointError, UsageError
from megatron import read_documents, write_documents


@pytest.fixture
def two(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> list[Path]:
    files = sorted(folder.iterdir())
    tokenize(files[:25], tmp_path / "a", tokenizer, eod=2)
    tokenize(files[25:], tmp_path / "b", tokenizer, eod=2)
    return [tmp_path / "a", tmp_path / "b"]


def test_merging_parts_gives_what_tokenizing_the_whole_gives(
    two: list[Path], folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenize(sorted(folder.iterdir()), tmp_path / "whole", tokenizer, eod=2)
    merged = merge_tokens(two, tmp_path / "new" / "c")
    for suffix in ("bin", "idx"):
        assert (tmp_path / "new" / f"c.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    merged.check_hashes()
    ours, theirs = (json.loads((tmp_path / name).read_text()) for name in ("new/c.json", "whole.json"))
    assert ours | {"job": None} == theirs | {"job": None}
    assert not list((tmp_path / "new").glob(".c*"))


def test_documents_of_several_sequences_stay_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_documents(tmp_path / "a", 8, [[[1, 2], [3]], [[4]]])
    write_documents(tmp_path / "b", 8, [[[5], [], [6, 7]], []])
    merged = merge_tokens([tmp_path / "a", tmp_path / "b", tmp_path / "a"], tmp_path / "c")
    assert read_documents(tmp_path / "c") == [[1, 2, 3], [4], [5, 6, 7], [], [1, 2, 3], [4]]
    assert merged.about is not None
    assert merged.about.tokenizer_sha256 is merged.about.eod is merged.about.text_bytes is None


def test_what_is_not_known_of_a_part_is_not_said_of_the_whole(two: list[Path], tmp_path: Path) -> None:
    (tmp_path / "b.json").unlink()
    merged = merge_tokens(two, tmp_path / "c")
    assert merged.about is not None
    assert merged.about.tokenizer_sha256 is merged.about.eod is merged.about.text_bytes is None
    assert merged.documents == 40


def test_files_of_two_tokenizers_are_refused(two: list[Path], folder: Path, texts: list[str], tmp_path: Path) -> None:
    tokenize(sorted(folder.iterdir()), tmp_path / "other", train_tokenizer(texts, 290), eod=2)
    with pytest.raises(UsageError, match="differ in tokenizer_sha256"):
        merge_tokens([*two, tmp_path / "other"], tmp_path / "c")
    assert not list(tmp_path.glob("c*"))


def test_tokens_of_two_widths_are_refused(tmp_path: Path) -> None:
    write_documents(tmp_path / "a", 8, [[[1]]])
    write_documents(tmp_path / "b", 4, [[[1]]])
    with pytest.raises(UsageError, match=r"has int32 tokens, and .* uint16"):
        merge_tokens([tmp_path / "a", tmp_path / "b"], tmp_path / "c")


def test_a_part_with_a_flipped_bit_is_refused_and_nothing_is_written(two: list[Path], tmp_path: Path) -> None:
    raw = bytearray((tmp_path / "b.bin").read_bytes())
    raw[7] ^= 4
    (tmp_path / "b.bin").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"b\.bin is not as it was written"):
        merge_tokens(two, tmp_path / "c")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("c", ".c.unfinished"))]


def test_a_file_that_is_there_is_not_replaced(two: list[Path]) -> None:
    with pytest.raises(UsageError, match=r"b\.bin is there already"):
        merge_tokens(two, two[1])
    assert read_tokens(two[1]).documents == 15


def test_nothing_to_merge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no token files to merge"):
        merge_tokens([], tmp_path / "c")
