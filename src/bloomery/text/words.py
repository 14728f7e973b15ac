"""A word as the token sequences that write it in a text, for options that forbid or ask for words. Knows no option."""

from bloomery.errors import UsageError
from bloomery.text.tokenizer import Tokenizer


def word_ids(tokenizer: Tokenizer, word: str) -> list[tuple[int, ...]]:
    """How the tokenizer writes a word behind a space and without one, whether or not the word begins with spaces.

    Hugging Face asks its users to build the tokenizer with add_prefix_space for the first; without the second a word
    at the beginning of a line, or behind a bracket, is another.

    Raises:
        UsageError: the tokenizer has no tokens for it.
    """
    bare = word.lstrip(" ")
    if not bare:
        raise UsageError("a word is empty: it has no tokens")
    line = _encode(tokenizer, "\n")
    on_line = _encode(tokenizer, f"\n{bare}")
    found = [_encode(tokenizer, bare), _encode(tokenizer, f" {bare}")]
    # A tokenizer that puts a space before every text writes a word without one only behind something else.
    if line and on_line[: len(line)] == line:
        found.append(on_line[len(line) :])
    unknown = _unknown(tokenizer)
    if not all(found) or any(unknown in ids for ids in found):
        raise UsageError(f"the tokenizer has no tokens for the word {word!r}: leave it out, or give its ids")
    return list(dict.fromkeys(found))


def spaced_ids(tokenizer: Tokenizer, word: str) -> tuple[int, ...]:
    """How the tokenizer writes a word behind another and a space, whether or not the word begins with spaces.

    Raises:
        UsageError: the tokenizer has no tokens for it.
    """
    if not word.strip():
        raise UsageError("a word is empty: it has no tokens")
    before, both = _encode(tokenizer, "a"), _encode(tokenizer, f"a {word.lstrip(' ')}")
    ids = both[len(before) :]
    if not ids or both[: len(before)] != before or _unknown(tokenizer) in ids:
        raise UsageError(f"the tokenizer has no tokens for the word {word!r}: leave it out, or give its ids")
    return ids


def _encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Ids of a text, without those that stand around every text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the word {text.strip()!r} is not valid Unicode: {error.reason}") from None
    return tuple(tokenizer.backend.encode(text, add_special_tokens=False).ids)


def _unknown(tokenizer: Tokenizer) -> int | None:
    """The id of what a tokenizer cannot read, where it has one."""
    token = getattr(tokenizer.backend.model, "unk_token", None)
    return None if token is None else tokenizer.backend.token_to_id(token)
