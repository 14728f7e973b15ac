"""What transformers calls at every step of a request: where texts end that its own criteria do not know, and the clock.

Knows no option. Both classes are what transformers takes for its own of that kind, by how they are called.
"""

from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from bloomery.errors import BloomeryError
from bloomery.text.stream import TextStream


class Watch:
    """A stopping criterion: ends texts where a stop string is complete, as our own engine does.

    Theirs compares pieces of tokens, and needs a tokenizer of theirs. It is asked once a step, which is also how the
    first token's moment is known.

    Args:
        prompt: tokens before every text.
        new_text: an empty text, which knows its stop strings; None: there are none.
    """

    def __init__(self, prompt: int, new_text: Callable[[], TextStream] | None) -> None:
        self.prompt, self._new_text = prompt, new_text
        self.first_token: float | None = None
        self._texts: dict[tuple[int, ...], TextStream] = {}  # as they were a step ago, by their tokens

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        """(R, T) ids -> (R,) whether each text ends."""
        if self.first_token is None:
            self.first_token = perf_counter()
        if self._new_text is None:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        rows = [tuple(row) for row in input_ids[:, self.prompt :].tolist()]
        self._texts = {row: self._grown(row, self._new_text) for row in rows}
        return torch.tensor([self._texts[row].stopped for row in rows], device=input_ids.device)

    def _grown(self, row: Sequence[int], new_text: Callable[[], TextStream]) -> TextStream:
        """The text of a row, which extends one of the step before; a beam goes on from any of them."""
        before = self._texts.get(tuple(row[:-1]))
        text = new_text() if before is None else before.fork()
        for token in row if before is None else row[-1:]:
            text.advance(token)
        return text


class Finite:
    """A logits processor that changes nothing: it ends a request that transformers would go on with on no numbers.

    Args:
        prompt: tokens before every text.
        ends: tokens that end a text; what is computed behind one is of no concern.
    """

    def __init__(self, prompt: int, ends: tuple[int, ...]) -> None:
        self.prompt, self.ends = prompt, torch.tensor(ends, dtype=torch.long)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(R, T) ids and (R, V) logits -> the same logits.

        Raises:
            BloomeryError: a text has no token left that could be chosen.
        """
        new = input_ids[:, self.prompt :]
        ended = torch.isin(new, self.ends.to(new.device)).any(-1)
        if not (ended | scores.amax(-1).isfinite()).all():
            raise BloomeryError(
                f"transformers has no token to choose at generated token {new.shape[-1]}: try dtype float32, or fewer "
                "options that forbid tokens"
            )
        return scores
