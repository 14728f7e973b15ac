"""Contrastive search: of a few likely tokens, the one that is least like what the text has said already.

What counts as least is that of transformers 4.55 (`_contrastive_search`), for one prompt; Su et al. 2022, "A
Contrastive Framework for Neural Text Generation", equation 5. Letters: K candidates, T tokens of prompt and text.
"""

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from bloomery.engine.continuation import Continuation, Rules
from bloomery.engine.params import SamplingParams
from bloomery.engine.strategy import Decision, Matcher, Row, Said


class Candidate(NamedTuple):
    """A token that may come next, and how likely the options make it."""

    id: int
    probability: float


class Run(NamedTuple):
    """A candidate that has been run: how good it is, which it is, its direction (E,), and the logits (V,) behind it."""

    score: float
    place: int
    direction: Tensor
    logits: Tensor


class ContrastiveSearch:
    """A text each of whose tokens has run beside its K - 1 rivals, in as many sequences that share all before it.

    A candidate's score is (1 - alpha) × its probability - alpha × the greatest cosine between its hidden state and
    those of all tokens before it. These are kept once for all candidates, as directions.

    Raises:
        UsageError: an option cannot be met behind this prompt.
    """

    def __init__(
        self,
        prompt: list[int],
        params: SamplingParams,
        eos_ids: tuple[int, ...] = (),
        matcher: Matcher | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        assert params.top_k is not None
        assert params.penalty_alpha is not None
        self.alpha, self.top_k = params.penalty_alpha, params.top_k
        # top_k is no cut here: probabilities are those among all tokens.
        self.rules = Rules(prompt, replace(params, top_k=None, penalty_alpha=None), eos_ids, clock=clock)
        self.text = Continuation(self.rules, matcher)
        self.candidates: list[Candidate] = []
        self._logits = torch.empty(0)  # (V,) that the candidates were taken from
        self._unread = [part for part in (prompt[:-1], prompt[-1:]) if part]
        self._context: Tensor | None = None  # (positions, E), of which the first `_known` are filled
        self._known = 0
        self._best: Run | None = None

    @property
    def seats(self) -> int:
        return self.top_k

    @property
    def positions(self) -> int:
        return self.rules.positions + 1  # the last token runs as well, to be compared

    def begin(self) -> None:
        self.rules.begin()

    def rows(self) -> list[Row]:
        if self.candidates:
            return [Row([candidate.id], wanted=1) for candidate in self.candidates]
        # Hidden states of the whole prompt, but logits of its last token only.
        ids = self._unread.pop(0)
        return [Row(ids, wanted=len(ids), head=not self._unread)]

    def accept(self, index: int, logits: Tensor | None, hidden: Tensor) -> None:
        directions = hidden.float() / hidden.float().norm(dim=-1, keepdim=True)
        if not self.candidates:
            self._remember(directions)
            if logits is not None:
                self._best = Run(0.0, 0, directions[-1], logits[-1].clone())
            return
        assert logits is not None
        likeness = float((self._seen @ directions[-1]).max())
        score = (1 - self.alpha) * self.candidates[index].probability - self.alpha * likeness
        best = self._best
        if best is None or score > best.score or (score == best.score and index < best.place):
            self._best = Run(score, index, directions[-1], logits[-1].clone())

    def decide(self) -> Decision:
        best, self._best = self._best, None
        if best is None:  # the prompt's last token is still to come
            return Decision()
        said: tuple[Said, ...] = ()
        if self.candidates:
            token = self.text.token(self.candidates[best.place].id, self._logits)
            self._remember(best.direction[None])
            finish = self.text.add(token)
            said = (Said((token,), finish, matcher=self.text.matcher),)
            if finish is not None:
                return Decision(said, done=True)
        self._logits = best.logits
        self.candidates = self._likeliest()
        return Decision(said, keep=(best.place,) * len(self.candidates))

    def _likeliest(self) -> list[Candidate]:
        """The K likeliest next tokens, fewer where the options leave fewer."""
        processed = self.text.process(self._logits)
        allowed = int((processed > -torch.inf).sum())
        probabilities, ids = processed.softmax(-1).topk(min(self.top_k, allowed))
        return [Candidate(*pair) for pair in zip(ids.tolist(), probabilities.tolist(), strict=True)]

    @property
    def _seen(self) -> Tensor:
        assert self._context is not None
        return self._context[: self._known]

    def _remember(self, directions: Tensor) -> None:
        """Keep the directions of tokens that the text now has. Grown in place, as long as the text may become."""
        if self._context is None:
            self._context = directions.new_empty((self.positions, directions.shape[-1]))
        self._context[self._known : self._known + len(directions)] = directions
        self._known += len(directions)
