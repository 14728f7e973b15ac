"""A prompt as it is given -> ids that a model can take, or one line that says why not. Knows limits, but no model."""

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any, Literal

from bloomery.errors import UsageError
from bloomery.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
"""A text, or token ids."""

Truncate = Literal["left", "right"]
"""The side at which a prompt that is too long is cut."""


class PromptReader:
    """Reads prompts for one model.

    Args:
        tokenizer: None where the model has none; then prompts are ids.
        vocab_size: ids below this exist.
        context: most tokens of a prompt and its completion.
        taken: tokens of the model's context that are not in it, because something stands before every text.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, context: int, taken: int = 0) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.context = context
        self.also = f" (the adapter's virtual tokens take {taken} more)" if taken else ""

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt of any length.

        Raises:
            UsageError: it is empty, neither text nor ids, text although there is no tokenizer, or holds an id that
                does not exist.
        """
        if not isinstance(prompt, str):
            ids = _as_ids(prompt)
        elif self.tokenizer is None:
            raise UsageError("the model has no tokenizer.json: give token ids instead of text")
        else:
            ids = self.tokenizer.encode(prompt)
        if not ids:
            raise UsageError("the prompt is empty: give at least one token to continue from")
        wrong = next((token for token in ids if not 0 <= token < self.vocab_size), None)
        if wrong is not None:
            raise UsageError(f"token id {wrong} is outside the model's vocabulary of {self.vocab_size}")
        return ids

    def named(self, name: str, prompt: Prompt) -> list[int]:
        """Ids of a text that an option gives. Raises UsageError as `encode`, with the option's name."""
        try:
            return self.encode(prompt)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None

    def refuse_without_room(self, name: str, length: int, new: int) -> None:
        """Raises UsageError where the tokens of an option's text, and `new` ones, are more than the context."""
        if length + new > self.context:
            raise UsageError(
                f"{name} has {length} tokens, and {new} new ones leave room for {self.context - new} in the context of "
                f"{self.context}{self.also}: shorten it, or ask for fewer new ones"
            )

    def whole(self, prompt: Prompt) -> list[int]:
        """Ids of a text that is to be read as it is.

        Raises:
            UsageError: as `encode`, or it is longer than the context.
        """
        ids = self.encode(prompt)
        if len(ids) > self.context:
            raise UsageError(f"{len(ids)} tokens do not fit the context of {self.context}{self.also}: split the text")
        return ids

    def with_room_for(self, new: int, prompt: Prompt, truncate: Truncate | None) -> list[int]:
        """Ids of a prompt that `new` tokens can follow.

        Raises:
            UsageError: as `encode`, or it is too long and `truncate` is None, or that is no side.
        """
        room = self.context - new
        if room < 1:
            raise UsageError(
                f"max_new_tokens {new} leaves no room for a prompt in a context of {self.context} tokens{self.also}: "
                f"ask for at most {self.context - 1}"
            )
        why = f"{new} new ones leave room for {room} in the context of {self.context}{self.also}"
        return self._cut(prompt, room, truncate, f"{why}: shorten it, lower max_new_tokens")

    def within(self, length: int, prompt: Prompt, truncate: Truncate | None) -> list[int]:
        """Ids of a prompt that, with one new token at least, is no longer than `length`.

        Raises:
            UsageError: as `with_room_for`, or `length` is beyond the context.
        """
        if length > self.context:
            raise UsageError(
                f"max_length {length} is beyond the context of {self.context} tokens{self.also}: lower it to that"
            )
        why = f"max_length {length} leaves room for {length - 1}"
        return self._cut(prompt, length - 1, truncate, f"{why}: shorten it, raise max_length")

    def _cut(self, prompt: Prompt, room: int, truncate: Truncate | None, why: str) -> list[int]:
        if truncate not in (None, "left", "right"):
            raise UsageError(f"truncate is {truncate!r}: give 'left' or 'right', or leave it out")
        ids = self.encode(prompt)
        if len(ids) <= room:
            return ids
        if truncate is None:
            raise UsageError(f"the prompt has {len(ids)} tokens, and {why}, or truncate it left or right")
        return ids[-room:] if truncate == "left" else ids[:room]

    def to_score(self, text: Prompt | tuple[Prompt, Prompt]) -> tuple[list[int], int]:
        """Ids, and how many of the last of them are to be scored: all but the first of a text; of a pair (context,
        continuation) those of the whole text that follow the context's own.

        Raises:
            UsageError: as `whole`, or nothing is left to score.
        """
        if isinstance(text, tuple) and len(text) == 2 and not isinstance(text[0], int):
            context, continuation = text
            given = self.encode(context)
            if isinstance(context, str) and isinstance(continuation, str):
                ids = self.whole(context + continuation)
            else:
                ids = self.whole([*given, *self.encode(continuation)])
            scored = len(ids) - len(given)
        else:
            ids = self.whole(text)
            scored = len(ids) - 1
        if scored < 1:
            raise UsageError("nothing to score: a text needs two tokens at least, a continuation one")
        return ids, scored


def _as_ids(prompt: Sequence[int]) -> list[int]:
    """Whole numbers, of whichever library, as Python's own."""
    try:
        if isinstance(prompt, bytes):
            raise TypeError("they would pass as numbers, and be read as ids")
        return [index(token) for token in prompt]
    except TypeError:
        raise UsageError(f"a prompt is a text or a list of token ids, not {str(prompt)[:80]!r}") from None


def as_list(prompts: Any) -> list[Any]:
    """One prompt or many: a text and a list of ids are one, also where numpy or torch hold the ids."""
    if isinstance(prompts, str | bytes):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise UsageError(f"{prompts!r} is no prompt: give a text, a list of token ids, or a list of these")
    items = list(prompts)
    return [items] if items and (isinstance(items[0], int) or getattr(items[0], "ndim", None) == 0) else items
