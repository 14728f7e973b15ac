"""The loop around scheduler and runner: ids in, ids out. Serves every way of generating; never sees a string."""

from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter

import torch

from bloomery.engine.options import MAX_STEP_TOKENS
from bloomery.engine.request import Request, Update
from bloomery.engine.runner import Result, Runner
from bloomery.engine.scheduler import Scheduler, Step, Work
from bloomery.engine.shapes import Shapes
from bloomery.engine.strategies.scoring import Forward
from bloomery.engine.strategy import Decision, Row, Said
from bloomery.errors import BloomeryError
from bloomery.model.cache import Beginning, KVCache, kv_dtype
from bloomery.model.decoder import Decoder
from bloomery.ops.attention import BLOCK
from bloomery.ops.native.calls import torch_alone


@dataclass
class DecodeClock:
    """Steps in which no prompt was run, nor a text again that had given way: what decoding speed is measured on. Those
    of a draft count apart."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    draft_steps: int = 0


class Engine:
    """Continuous batching over one decoder, and perhaps a draft that guesses for it.

    Args:
        max_seq_len: positions of one request, those of the beginning included, at most the model's.
        max_batch_size: sequences that run at once; requests beyond them wait in order.
        max_step_tokens: most tokens of one step: longer prompts run in chunks.
        blocks: of keys and values; None: as many as `max_batch_size` sequences of `max_seq_len` can need. With fewer,
            the request that came last gives way when they run out, and is computed again.
        beginning: what stands before the tokens of every request, which know nothing of it.
        shapes: how steps are padded, for these numbers; None: not at all.
        cache_dtype: of keys and values, and what PyTorch's attention computes in unless it is int8; None: `kv_dtype`
            says.
        softmax_dtype: what attention's scores and softmax are computed in; None: as the fused kernel does.
        draft: a smaller decoder of the same vocabulary, which runs what strategies want of model 1. It has as many
            blocks of its own.
        record: whether decoding steps may be recorded: not those of compiled blocks, whose calls nobody sees.
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
        shapes: Shapes | None = None,
        cache_dtype: torch.dtype | None = None,
        softmax_dtype: torch.dtype | None = None,
        draft: Decoder | None = None,
        record: bool = True,
    ) -> None:
        shapes = shapes or Shapes()
        blocks = blocks or max_batch_size * -(-max_seq_len // BLOCK)
        models = (decoder,) if draft is None else (decoder, draft)
        self.runners = tuple(
            Runner(model, _cache(model, blocks, cache_dtype, shapes), shapes, softmax_dtype, record=record)
            for model in models
        )
        self.beginning = beginning
        self.scheduler = Scheduler(
            blocks=blocks,
            block=BLOCK,
            max_running=max_batch_size,
            max_step_tokens=max_step_tokens,
            first=beginning.length if beginning else 0,
            cost=shapes.cost,
            models=len(models),
        )
        self.decoding = DecodeClock()
        self.warmed_up = 0.0
        """Seconds that warming up took."""
        self._stepping = False
        self._aborted: list[Request] = []  # within the step that is running
        self._lost: list[Update] = []  # of requests whose step was stopped midway

    @property
    def runner(self) -> Runner:
        """The model's own."""
        return self.runners[0]

    @property
    def idle(self) -> bool:
        return not self.scheduler.running and not self.scheduler.waiting

    def add(self, request: Request) -> None:
        """Queue a request. Raises UsageError when it could never fit."""
        self.scheduler.add(request)

    def abort(self, request: Request) -> None:
        """End a request now; its blocks are free for the next step. Does nothing to one that has ended.

        Within a step, as where the collector closes an iterator, it takes effect at the step's end.
        """
        if request.finished is None:
            if self._stepping:
                self._aborted.append(request)
            else:
                self._finish(request)

    def warm_up(self) -> float:
        """Run every shape of a step once, in blocks that nobody owns; seconds that it took.

        Whoever gets one of these blocks gets it cleared, as always.
        """
        began = perf_counter()
        size, nobody = self.scheduler.pool.size, Request(Forward([0], head=True))
        for lengths in self.runner.shapes.steps():
            batch = []
            for index, length in enumerate(lengths):
                blocks = [place % size for place in range(-(-length // BLOCK))]
                batch.append(Work(nobody, index, tuple(blocks), 0, Row([0] * length, wanted=1)))
            for runner in self.runners:
                deque(runner.run(batch), maxlen=0)
        self.warmed_up = perf_counter() - began
        return self.warmed_up

    def step(self) -> list[Update]:
        """Schedule, run, hand out the results.

        Whatever stops it midway (Ctrl-C, no memory) ends all requests that were part of it, since nobody knows how far
        each of them came: `lost` has what is to be said to them.
        """
        self._stepping = True
        try:
            with torch_alone() if self.runner.native else nullcontext():
                return self._step()
        finally:
            self._stepping = False
            for request in self._aborted:
                if request.finished is None:
                    self._finish(request)
            self._aborted.clear()

    def lost(self) -> list[Update]:
        """The ends of requests whose step was stopped midway, once."""
        lost, self._lost = self._lost, []
        return lost

    def _step(self) -> list[Update]:
        began = perf_counter()
        step = self.scheduler.schedule()
        if not step.work:
            return []
        try:
            return self._run(step, began)
        except BaseException as error:
            failure = BloomeryError(f"a step that it was part of was stopped by {error!r}: ask again")
            for request in _each(step.work):
                if request.finished is None:
                    self._lost += self._failed(request, failure)
            raise

    def _run(self, step: Step, began: float) -> list[Update]:
        runner = self.runners[step.model]
        runner.cache.clear(step.fresh)
        runner.cache.copy(step.copies)
        for piece in step.work:
            if piece.request.started is None:
                piece.request.started = began
                piece.request.strategy.begin()
            if self.beginning is not None and (step.model, piece.start) == (0, self.beginning.length):  # a first piece
                runner.cache.begin(piece.blocks, self.beginning)
        decoding = all(piece.request.decided and not piece.opening for piece in step.work)
        failed: dict[Request, BloomeryError] = {}
        for result in runner.run(step.work):
            self._accept(result, failed)
        updates = [update for request in _each(step.work) for update in self._decide(request, failed.get(request))]
        if decoding:
            self._count(step.model, updates, perf_counter() - began)
        return updates

    def _count(self, model: int, updates: list[Update], seconds: float) -> None:
        self.decoding.steps += model == 0
        self.decoding.draft_steps += model != 0
        self.decoding.tokens += sum(len(update.said.tokens) for update in updates)
        self.decoding.seconds += seconds

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
        request.decided = request.decided or decision != Decision()
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


def _cache(decoder: Decoder, blocks: int, dtype: torch.dtype | None, shapes: Shapes) -> KVCache:
    dtype = dtype or kv_dtype(decoder.dtype, decoder.device)
    return KVCache(decoder.config, blocks, dtype, decoder.device, scratch=shapes.padded)


def _each(work: list[Work]) -> list[Request]:
    """The requests of a step, in the order of their work."""
    return list(dict.fromkeys(piece.request for piece in work))
