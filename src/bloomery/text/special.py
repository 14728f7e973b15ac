"""Special tokens that the files beside a tokenizer name, added to it in the order in which transformers adds them, so
that they get the same ids. Knows no file."""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

from bloomery.errors import CheckpointError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Those that every tokenizer may have, in the order in which transformers adds them."""
Raw = Mapping[str, Any]
"""A parsed JSON object."""
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Described:
    """What a folder's JSON files say of its tokenizer's special tokens.

    `listed` are tokens by their ids; `named` are those that have a part to play, and `extra` those that have none.

    Args:
        config: tokenizer_config.json. Where it has `added_tokens_decoder`, the other two are not asked.
        special: special_tokens_map.json.
        added: added_tokens.json, token -> id.
        defaults: named tokens, where no file says anything of one.

    Raises:
        CheckpointError: a token is described as none can be.
    """

    def __init__(self, config: Raw, special: Raw, added: Raw, defaults: Mapping[str, str]) -> None:
        complete = "added_tokens_decoder" in config
        raw = {**defaults, **config, **({} if complete else special)}
        others = [key for key in raw if key.endswith("_token") and key not in NAMED]
        given = {name: raw.get(name) for name in (*NAMED, *others)}
        extra = raw.get("extra_special_tokens") or raw.get("additional_special_tokens") or []
        if isinstance(extra, Mapping):
            given |= extra
            extra = []
        if not isinstance(extra, list):
            raise CheckpointError(f"the tokenizer's extra special tokens are {ascii(extra)[:80]}: fetch it again")
        # "add_bos_token" is no token, but says whether one is added.
        self.named = {name: _token(v, True) for name, v in given.items() if v is not None and not isinstance(v, bool)}
        self.extra = [_token(value, True) for value in extra]
        known = {token.content for token in (*self.named.values(), *self.extra)}
        if complete:
            self.listed = {_id(index): _token(v) for index, v in _mapping(config["added_tokens_decoder"]).items()}
        else:
            self.listed = {
                _id(index): AddedToken(text, normalized=text not in known, special=text in known)
                for text, index in added.items()
            }


def add_special_tokens(backend: Tokenizer, described: Described) -> None:
    """Add the tokens that are described to a tokenizer: known ones keep their ids, others get the next."""
    names = {token.content for token in described.named.values()}
    tokens = [token for _, token in sorted(described.listed.items(), key=lambda item: item[0])]
    for token in tokens:
        token.special = token.special or token.content in names
    here = {token.content for token in (*tokens, *backend.get_added_tokens_decoder().values())}
    backend.add_tokens(
        tokens + [token for token in (*described.named.values(), *described.extra) if token.content not in here]
    )


def _token(value: Any, special: bool = False) -> AddedToken:
    """A token from JSON: its text, or a table with `content` and flags."""
    if isinstance(value, str):
        return AddedToken(value, special=special)
    table = _mapping(value)
    flags = {name: bool(table[name]) for name in FLAGS if name in table}
    if not isinstance(table.get("content"), str):
        raise CheckpointError(
            f"a special token of the tokenizer is {str(value)[:80]}, which says nothing: fetch it again"
        )
    if special:
        flags["special"] = True
    return AddedToken(table["content"], **flags)


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CheckpointError(
            f"the tokenizer's files have {str(value)[:80]} where tokens are described: fetch it again"
        )
    return value


def _id(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise CheckpointError(f"a token of the tokenizer has the id {str(value)[:80]}: fetch it again") from None
