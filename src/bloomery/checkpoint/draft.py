"""A draft for a model: a smaller one of the same vocabulary, checked before it is loaded. Knows nothing of its use."""

from pathlib import Path

import torch

from bloomery.checkpoint.folder import Folder, read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.checkpoint.tokenizer import open_tokenizer
from bloomery.errors import CheckpointError, UsageError
from bloomery.hub.resolve import resolve
from bloomery.model.decoder import Decoder
from bloomery.text.tokenizer import Tokenizer


def load_draft(
    draft: str | Path,
    base: Folder,
    tokenizer: Tokenizer | None,
    positions: int,
    dtype: torch.dtype | None,
    device: torch.device,
    *,
    offline: bool = False,
    token: str | None = None,
    huge_pages: bool = False,
) -> Decoder:
    """The decoder of a draft.

    Args:
        draft: as a model is named.
        base: the model that it is for.
        tokenizer: the model's; None where it has none.
        positions: of the longest text.
        huge_pages: as in `load_decoder`.

    Raises:
        UsageError: there is no such model, its tokens are others, or its context is too short.
        CheckpointError: its folder is incomplete or damaged, or fetching it failed.
    """
    try:
        folder = read_folder(resolve(draft, None, offline, token))
    except (UsageError, CheckpointError) as error:
        raise type(error)(f"draft: {error}") from None
    ours, theirs = base.config.vocab_size, folder.config.vocab_size
    if ours != theirs:
        raise UsageError(
            f"draft {folder.path} has a vocabulary of {theirs}, and the model one of {ours}: choose a draft that was "
            "trained with the model's tokenizer"
        )
    if folder.config.max_seq_len < positions:
        raise UsageError(
            f"draft {folder.path} has a context of {folder.config.max_seq_len}, the model one of {positions}: lower "
            "max_seq_len to that, or choose another draft"
        )
    _refuse_other_tokens(folder, base, tokenizer)
    return load_decoder(folder, dtype, device, huge_pages=huge_pages)


def _refuse_other_tokens(folder: Folder, base: Folder, tokenizer: Tokenizer | None) -> None:
    """Raises UsageError where an id stands for another token. Only the ids matter: the draft never reads a text."""
    theirs = open_tokenizer(folder)
    if tokenizer is None or theirs is None or _same_file(folder.tokenizer, base.tokenizer):
        return
    ids, other = tokenizer.backend.get_vocab(), theirs.backend.get_vocab()
    wrong = next((token for token in ids if other.get(token) != ids[token]), None)
    if wrong is None:
        wrong = next((token for token in other if token not in ids), None)
    if wrong is not None:
        raise UsageError(
            f"draft {folder.path} has other tokens than the model: {ascii(wrong)[:80]} is {_named(other, wrong)} there "
            f"and {_named(ids, wrong)} here; choose a draft that was trained with the model's tokenizer"
        )


def _same_file(one: Path | None, other: Path | None) -> bool:
    """Byte for byte, so that neither has to be taken apart."""
    return one is not None and other is not None and one.read_bytes() == other.read_bytes()


def _named(ids: dict[str, int], token: str) -> str:
    return f"id {ids[token]}" if token in ids else "no token"
