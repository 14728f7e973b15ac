"""The loop around scheduler and runner: ids in, ids out. Serves every way of generating; never sees a string."""

from dataclasses import dataclass
from time import perf_counter

from bloomery.engine.request import Request, Update
from bloomery.engine.runner import Result, Runner
from bloomery.engine.scheduler import Scheduler
from bloomery.errors import BloomeryError
from bloomery.model.cache import Beginning, KVCache, kv_dtype
from bloomery.model.decoder import Decoder
from bloomery.ops.attention import BLOCK

MAX_STEP_TOKENS = 512
"""Tokens of one step, unless another number is asked for."""


@dataclass
class DecodeClock:
    """Steps in which every running request got exactly one token: what decoding speed is measured on."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Engine:
    """Continuous batching over one decoder.

    Args:
        max_seq_len: positions of one request, those of the beginning included, at most the model's.
        max_batch_size: requests that run at once; more wait in order.
        max_step_tokens: most tokens of one step: longer prompts run in chunks.
        beginning: what stands before the tokens of every request, which know nothing of it.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_seq_len: int,
        max_batch_size: int,
        max_step_tokens: int = MAX_STEP_TOKENS,
        beginning: Beginning | None = None,
    ) -> None:
        blocks = max_batch_size * -(-max_seq_len // BLOCK)
        cache = KVCache(decoder.config, blocks, kv_dtype(decoder.dtype, decoder.device), decoder.device)
        self.runner = Runner(decoder, cache)
        self.beginning = beginning
        self.scheduler = Scheduler(
            blocks=blocks,
            block=BLOCK,
            max_running=max_batch_size,
            max_step_tokens=max_step_tokens,
            first=beginning.length if beginning else 0,
        )
        self.decoding = DecodeClock()

    @property
    def idle(self) -> bool:
        return not self.scheduler.running and not self.scheduler.waiting

    def add(self, request: Request) -> None:
        """Queue a request. Raises UsageError when it could never fit."""
        self.scheduler.add(request)

    def abort(self, request: Request) -> None:
        """End a request now; its blocks are free for the next step. Does nothing to one that has ended."""
        if request.finished is None:
            self._finish(request)

    def step(self) -> list[Update]:
        """Schedule, run, hand out the results."""
        began = perf_counter()
        work, fresh = self.scheduler.schedule()
        if not work:
            return []
        for piece in work:
            piece.request.started = piece.request.started or began
        self.runner.cache.clear(fresh)
        if self.beginning is not None:
            for piece in work:
                if piece.start == self.beginning.length:  # a request's first piece
                    self.runner.cache.begin(piece.blocks, self.beginning)
        updates = [update for result in self.runner.run(work) if (update := self._accept(result))]
        for update in updates:
            if update.finish:
                self._finish(update.request)
        if all(len(piece.row.ids) == 1 == piece.row.wanted for piece in work):
            self.decoding.steps += 1
            self.decoding.tokens += sum(len(update.tokens) for update in updates)
            self.decoding.seconds += perf_counter() - began
        return updates

    def _accept(self, result: Result) -> Update | None:
        request = result.work.request
        try:
            outcome = request.strategy.accept(result.logits, result.hidden)
        except BloomeryError as error:  # ends this request; the others go on
            return Update(request, (), "error", error)
        if outcome.tokens and request.first_token is None:
            request.first_token = perf_counter()
        return Update(request, outcome.tokens, outcome.finish) if outcome.tokens or outcome.finish else None

    def _finish(self, request: Request) -> None:
        request.finished = perf_counter()
        self.scheduler.release(request)
