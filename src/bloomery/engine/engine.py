"""The loop around scheduler and runner: ids in, ids out. Serves every way of generating; never sees a string."""

from dataclasses import dataclass
from time import perf_counter

from bloomery.engine.request import Request, Update
from bloomery.engine.runner import Result, Runner
from bloomery.engine.scheduler import Scheduler, Work
from bloomery.engine.strategy import Said
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
        max_batch_size: sequences that run at once; requests beyond them wait in order.
        max_step_tokens: most tokens of one step: longer prompts run in chunks.
        blocks: of keys and values; None: as many as `max_batch_size` sequences of `max_seq_len` can need. With fewer,
            the request that came last gives way when they run out, and is computed again.
        beginning: what stands before the tokens of every request, which know nothing of it.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_seq_len: int,
        max_batch_size: int,
        max_step_tokens: int = MAX_STEP_TOKENS,
        blocks: int | None = None,
        beginning: Beginning | None = None,
    ) -> None:
        blocks = blocks or max_batch_size * -(-max_seq_len // BLOCK)
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
        step = self.scheduler.schedule()
        if not step.work:
            return []
        self.runner.cache.clear(step.fresh)
        self.runner.cache.copy(step.copies)
        for piece in step.work:
            piece.request.started = piece.request.started or began
            if self.beginning is not None and piece.start == self.beginning.length:  # a sequence's first piece
                self.runner.cache.begin(piece.blocks, self.beginning)
        failed: dict[Request, BloomeryError] = {}
        for result in self.runner.run(step.work):
            self._accept(result, failed)
        updates = [update for request in _each(step.work) for update in self._decide(request, failed.get(request))]
        if all(len(piece.row.ids) == 1 == piece.row.wanted for piece in step.work):
            self.decoding.steps += 1
            self.decoding.tokens += sum(len(update.said.tokens) for update in updates)
            self.decoding.seconds += perf_counter() - began
        return updates

    def _accept(self, result: Result, failed: dict[Request, BloomeryError]) -> None:
        request = result.work.request
        if request in failed:
            return
        try:
            request.strategy.accept(result.work.index, result.logits, result.hidden)
        except BloomeryError as error:  # ends this request; the others go on
            failed[request] = error

    def _decide(self, request: Request, error: BloomeryError | None) -> list[Update]:
        """What a request has to say, once all its rows have been run."""
        if error is not None:
            return self._failed(request, error)
        if any(slot.pending for slot in request.slots):
            return []
        try:
            decision = request.strategy.decide()
        except BloomeryError as failure:
            return self._failed(request, failure)
        if request.first_token is None and any(said.tokens for said in decision.said):
            request.first_token = perf_counter()
        if decision.done:
            self._finish(request)
        else:
            self.scheduler.follow(request, decision)
        return [Update(request, said) for said in decision.said]

    def _failed(self, request: Request, error: BloomeryError) -> list[Update]:
        """End a request with what went wrong; the others go on."""
        self._finish(request)
        return [Update(request, Said(finish="error"), error)]

    def _finish(self, request: Request) -> None:
        request.finished = perf_counter()
        self.scheduler.release(request)


def _each(work: list[Work]) -> list[Request]:
    """The requests of a step, in the order of their work."""
    return list(dict.fromkeys(piece.request for piece in work))
