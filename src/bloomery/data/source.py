"""A run of tokens and where its documents end: what samples are cut from. Knows no file and no order."""

from collections.abc import Callable
from functools import cached_property

import numpy as np

Tokens = np.ndarray[tuple[int], np.dtype[np.integer]]
Ends = np.ndarray[tuple[int], np.dtype[np.int64]]


class Source:
    """Tokens of documents, one after the other.

    Args:
        ids: (N,) the tokens, each document's end-of-document token included; mapped ones are read when they are used.
        name: what messages call it, such as a file or an option.
        sha256: of all tokens of the file that they are from, where it is known.
        ends: (D,) for each document the place after its last token, rising up to N, or a call that gives them; None:
            all is one document.
    """

    def __init__(
        self,
        ids: Tokens,
        name: str = "data.train",
        ends: Ends | Callable[[], Ends] | None = None,
        sha256: str | None = None,
    ) -> None:
        self.ids, self.name, self._ends, self.sha256 = ids, name, ends, sha256

    def __len__(self) -> int:
        """Tokens."""
        return len(self.ids)

    @cached_property
    def ends(self) -> Ends:
        """(D,) for each document that is not empty the place after its last token."""
        if self._ends is None:
            return np.array([len(self.ids)], dtype=np.int64)
        return np.unique(self._ends() if callable(self._ends) else self._ends).astype(np.int64)

    def documents(self, start: int, stop: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """(stop - start,) for each token the number of its document, the first token's being 0."""
        inside = np.searchsorted(self.ends, np.arange(start, stop), side="right")
        return (inside - inside[0]).astype(np.int64)
