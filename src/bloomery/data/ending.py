"""Which token ends a document, as a tokenizer's files have it. Knows no text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bloomery.errors import UsageError

USUAL = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>")
"""What ends a text in tokenizers whose files say nothing of it, most usual first."""


def named_ends(file: Path) -> list[str | int]:
    """What the JSON files beside a tokenizer's file give as the end of a text, the most particular first.

    Files that are not there or damaged give nothing.
    """
    named: list[Any] = []
    for name, field in (
        ("tokenizer_config.json", "eos_token"),
        ("special_tokens_map.json", "eos_token"),
        ("generation_config.json", "eos_token_id"),
        ("config.json", "eos_token_id"),
    ):
        try:
            value = json.loads(file.with_name(name).read_bytes()).get(field)
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
        named += value if isinstance(value, list) else [value]
    tokens = [value.get("content") if isinstance(value, dict) else value for value in named]
    return [token for token in tokens if isinstance(token, str | int) and not isinstance(token, bool)]


def end_of_document(tokenizer: Tokenizer, named: Sequence[str | int]) -> int:
    """The id that ends a document.

    Args:
        named: what ends a text, by token or by id, the first that exists being taken; with nothing named, the usual
            tokens are looked for.

    Raises:
        UsageError: no such token is there.
    """
    for name in named or USUAL:
        index = tokenizer.token_to_id(name) if isinstance(name, str) else name
        if index is not None and index >= 0 and tokenizer.id_to_token(index) is not None:
            return index
    if named:
        words = ", ".join(map(str, named))
        raise UsageError(f"the tokenizer has no token {words} to end documents with: name another with --eod")
    raise UsageError("the tokenizer's files name no token that ends a text: name one, such as --eod '</s>'")
