"""The token that ends a document is the one that the tokenizer's files name, or the usual one, or refused."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bloomery.data.ending import end_of_document, named_ends
from bloomery.errors import UsageError


def tell(folder: Path, **files: object) -> Path:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return folder / "tokenizer.json"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, []),
        ({"tokenizer_config": {"eos_token": "</s>"}}, ["</s>"]),
        (
            {"tokenizer_config": {"eos_token": {"content": "<pad>", "lstrip": False}}, "config": {"eos_token_id": 7}},
            ["<pad>", 7],
        ),
        ({"tokenizer_config": {"eos_token": None}, "generation_config": {"eos_token_id": [5, 6]}}, [5, 6]),
        ({"tokenizer_config": "{", "config": [], "special_tokens_map": {"eos_token": "<s>"}}, ["<s>"]),
    ],
)
def test_the_files_beside_a_tokenizer_name_its_end(tmp_path: Path, files: dict, expected: list) -> None:
    assert named_ends(tell(tmp_path, **files)) == expected


def test_the_first_that_exists_is_taken(tokenizer: Tokenizer) -> None:
    assert end_of_document(tokenizer, ["</s>"]) == 2
    assert end_of_document(tokenizer, ["<none>", 3, "</s>"]) == 3
    assert end_of_document(tokenizer, []) == 2


@pytest.mark.parametrize("named", [["<none>"], [300], [-1]])
def test_an_end_that_no_token_has_is_refused(tokenizer: Tokenizer, named: list) -> None:
    with pytest.raises(UsageError, match=f"no token {named[0]} to end documents with"):
        end_of_document(tokenizer, named)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    from tokenizers.models import WordLevel

    with pytest.raises(UsageError, match="name one, such as --eod"):
        end_of_document(Tokenizer(WordLevel({"a": 0}, unk_token="a")), [])
