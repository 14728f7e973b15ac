"""LLM: text in, text out, on top of checkpoint and engine. Knows no command line and no server."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, Unpack, cast

import torch
from torch import Tensor

from bloomery.checkpoint.draft import load_draft
from bloomery.checkpoint.load import load_decoder
from bloomery.checkpoint.opening import adapter_for, model_folder, shape_folder
from bloomery.checkpoint.quantized import scheme_to_run
from bloomery.checkpoint.tokenizer import open_tokenizer
from bloomery.completion import Completion, Piece, Score, completed
from bloomery.devices import pick_device, pick_dtype, set_threads
from bloomery.engine.continuation import Generating
from bloomery.engine.engine import DecodeClock
from bloomery.engine.options import EngineArguments, EngineOptions
from bloomery.engine.params import SamplingParams
from bloomery.engine.processors.chain import check_vocabulary
from bloomery.engine.request import Request, Update
from bloomery.engine.spelling import OR, spell_choices
from bloomery.engine.start import pick_context, start_engine
from bloomery.engine.strategies.build import build_strategy
from bloomery.engine.strategies.scoring import Forward, Scoring
from bloomery.engine.strategy import Token
from bloomery.engine.turns import Turns
from bloomery.errors import UsageError
from bloomery.model.size import nbytes, weights_read
from bloomery.quant.scheme import name_of
from bloomery.text.compile import Grammars
from bloomery.text.grammar import GuidedText
from bloomery.text.prompt import Prompt, PromptReader, Truncate, as_list
from bloomery.text.stream import TextStream
from bloomery.text.words import spaced_ids, word_ids

T = TypeVar("T")


@dataclass
class _Job:
    """One prompt on its way."""

    index: int
    strategy: Generating
    request: Request
    tokens: dict[int, list[Token]] = field(default_factory=dict)  # of each of its texts


class LLM:
    """A model, ready.

    Args:
        model: name of a built-in model, path of a Hugging Face folder, or ORG/NAME[@REVISION] of a model on the Hub,
            which is fetched when it is not here.
        dtype: auto (the checkpoint's), float32, bfloat16 or float16.
        device: auto, cpu, cuda, cuda:1, …
        quant: packs the weights of linear layers while loading: int8, int4 or int4-g128; none leaves the model as it is
            kept. A store of packed weights stays as it is, and so does a draft. `dtype` is that of all other weights.
        revision: branch, tag or commit of a model of the Hub; None: its main branch.
        offline: send nothing; so does the environment with BLOOMERY_OFFLINE or HF_HUB_OFFLINE.
        token: for a private or gated model of the Hub; None takes HF_TOKEN, or the one that huggingface_hub has stored.
        adapter: folder, or ORG/NAME[@REVISION] on the Hub, of an adapter that peft wrote: LoRA, IA3, prompt or prefix
            tuning.
        draft: a smaller model with the same tokens, named as `model` is: it guesses the next ones, and the model checks
            all guesses in one step.
        shape: instead of a model, the shape of one: a published name such as "bloom-560m", or a config.json. Its
            weights are random, bfloat16 unless `dtype` says otherwise, and its tokenizer has a token for each byte.
        seed: of a shape's weights; None is 0.
        threads: CPU threads to compute on. The number is the process's (torch.set_num_threads), and every other model's
            in it: give it once, before anything is computed. None leaves PyTorch's as it is.
        engine: how it is run, by the names of EngineOptions: max_seq_len, max_batch_size, shapes, …

    Raises:
        UsageError: there is no such model, device, dtype or scheme, no process can have so many threads, an option of
            the engine cannot be met, or a shape's weights do not fit.
        CheckpointError: the folder is incomplete or damaged, or fetching it failed.
    """

    def __init__(
        self,
        model: str | Path = "dickens",
        *,
        dtype: str = "auto",
        device: str = "auto",
        quant: str = "none",
        revision: str | None = None,
        offline: bool = False,
        token: str | None = None,
        adapter: str | Path | None = None,
        draft: str | Path | None = None,
        shape: str | Path | None = None,
        seed: int | None = None,
        threads: int | None = None,
        **engine: Unpack[EngineArguments],
    ) -> None:
        options = EngineOptions(**engine)
        if threads is not None:
            set_threads(threads)
        if shape is None:
            self.folder = model_folder(model, revision, offline, token, seed)
        else:
            self.folder = shape_folder(shape, dtype, device, seed, model, revision, quant)
        self._scheme = scheme_to_run(quant, self.folder)
        added = None if adapter is None else adapter_for(adapter, self.folder, offline, token)
        virtual = added.virtual if added else None
        taken = virtual.count if virtual else 0
        self.max_seq_len = pick_context(options.max_seq_len, self.folder.config.max_seq_len, taken)
        self.tokenizer = open_tokenizer(self.folder, added.tokenizer if added else None)
        placed = pick_dtype(dtype), pick_device(device)
        self.draft = None
        if draft is not None:
            fits = self.folder, self.tokenizer, self.max_seq_len - taken
            huge = options.huge_pages
            self.draft = load_draft(draft, *fits, *placed, offline=offline, token=token, huge_pages=huge)
        self.decoder = load_decoder(self.folder, *placed, added, self._scheme, huge_pages=options.huge_pages)
        self.prompts = PromptReader(self.tokenizer, self.decoder.config.vocab_size, self.max_seq_len - taken, taken)
        self.grammars = Grammars(self.tokenizer, self.decoder.config.vocab_size, self.folder.eos_ids)
        beginning = virtual.beginning(self.decoder) if virtual else None
        self.engine = start_engine(
            self.decoder, options, max_seq_len=self.max_seq_len, beginning=beginning, draft=self.draft
        )
        self._turns = Turns(self.engine, _new_text)
        if self.tokenizer is not None:
            self.tokenizer.start()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        truncate: Truncate | None = None,
    ) -> list[Completion]:
        """Complete every prompt; answers in the order of the prompts, several of one next to each other, the best first
        where they were ranked.

        Args:
            prompts: texts or lists of token ids, or one of them.
            params: for all of them.
            truncate: cut a prompt that is too long at this side; None refuses it.

        Raises:
            UsageError: a prompt is empty, or too long for the context; an option cannot be met by this model, or behind
                this prompt.
        """
        done: dict[tuple[int, int], Completion] = {}
        for piece in self.stream(prompts, params, truncate=truncate):
            if piece.completion is not None:
                done[piece.index, piece.choice] = piece.completion
        return [done[place] for place in sorted(done)]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        truncate: Truncate | None = None,
    ) -> Iterator[Piece]:
        """As `generate`, giving text as it appears, of all prompts as they come. Closing the iterator ends them.

        Every prompt is checked before the first one runs.
        """
        params = self._in_ids(params or SamplingParams())
        return self._pieces(_each("prompt", prompts, lambda prompt, n: self._job(n, prompt, params, truncate)))

    def score(self, texts: Prompt | Sequence[Prompt | tuple[Prompt, Prompt]]) -> list[Score]:
        """Log-probabilities of texts, or of continuations given their contexts. Never holds a full [T, V] tensor.

        Args:
            texts: a text scores every token but its first, which nothing precedes; a pair (context, continuation)
                scores the continuation's tokens, cut where the whole text's tokens leave the context's.

        Raises:
            UsageError: nothing to score, or longer than the context.
        """
        strategies = _each("text", texts, lambda text, _: Scoring(*self.prompts.to_score(text)))
        self._turns.run([Request(strategy) for strategy in strategies])
        return [Score(tuple(s.ids[len(s.ids) - s.scored :]), tuple(s.logprobs), s.greedy) for s in strategies]

    def logits(self, ids: Prompt) -> Tensor:
        """Logits at every position: (T, V) fp32."""
        return self._forward(ids, head=True)

    def hidden(self, ids: Prompt) -> Tensor:
        """Hidden states after the last norm at every position: (T, E)."""
        return self._forward(ids, head=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.dtype

    @property
    def quant(self) -> str:
        """The scheme of the linear layers' weights, or none."""
        return name_of(self._scheme)

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    @property
    def decoding(self) -> DecodeClock:
        """Steps, tokens and seconds spent decoding so far."""
        return self.engine.decoding

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt. Raises UsageError for one that no model can take."""
        return self.prompts.encode(prompt)

    def _in_ids(self, params: SamplingParams) -> SamplingParams:
        """Options whose words are ids, all of which exist."""
        if params.bad_words:
            if self.tokenizer is None:
                raise UsageError("the model has no tokenizer.json: give bad_words_ids instead of bad_words")
            found = [",".join(map(str, ids)) for word in params.bad_words for ids in word_ids(self.tokenizer, word)]
            params = replace(params, bad_words=(), bad_words_ids=(*params.bad_words_ids, *found))
        if params.negative_prompt is not None:
            negative = self.prompts.named("negative_prompt", params.negative_prompt)
            params = replace(params, negative_prompt=None, negative_prompt_ids=tuple(negative))
        if params.force_words:
            if self.tokenizer is None:
                raise UsageError("the model has no tokenizer.json: give force_words_ids instead of force_words")
            for text in params.force_words:
                ids = [[spaced_ids(self.tokenizer, word) for word in text.split(OR)]]
                forced = spell_choices(f"force_words {text!r}, as ids,", ids)
                params = replace(params, force_words_ids=(*params.force_words_ids, *forced))
            params = replace(params, force_words=())
        check_vocabulary(params, self.decoder.config.vocab_size)
        return params

    def _job(self, index: int, prompt: Prompt, params: SamplingParams, truncate: Truncate | None) -> _Job:
        if params.max_length is None:
            ids = self.prompts.with_room_for(params.most_new_tokens(0), prompt, truncate)
        else:
            ids = self.prompts.within(params.max_length, prompt, truncate)
        most = params.most_new_tokens(len(ids))
        self.prompts.refuse_without_room("the negative prompt", len(params.negative_prompt_ids), most)
        if params.stop_strings and self.tokenizer is None:
            raise UsageError("the model has no tokenizer.json: stop strings need one")
        text = self._text(ids, params)
        cost = None if self.draft is None else nbytes(weights_read(self.draft)) / nbytes(weights_read(self.decoder))
        strategy = build_strategy(ids, params, self.folder.eos_ids, text, cost)
        return _Job(index, strategy, Request(strategy))

    def _text(self, prompt: list[int], params: SamplingParams) -> TextStream:
        """What watches a text as it grows, and knows what may follow."""
        decode = self.tokenizer.decode if self.tokenizer else lambda _: ""
        if params.form is None:
            return TextStream(decode, params.stop_strings, prompt)
        grammar = self.grammars.grammar(*params.form, closing=not params.ignore_eos)
        return GuidedText(decode, params.stop_strings, grammar, prompt)

    def _forward(self, ids: Prompt, *, head: bool) -> Tensor:
        strategy = Forward(self.prompts.whole(ids), head)
        self._turns.run([Request(strategy)])
        return torch.cat(strategy.collected)

    def _pieces(self, jobs: list[_Job]) -> Iterator[Piece]:
        by_request = {id(job.request): job for job in jobs}
        for update, new in self._turns.updates([job.request for job in jobs]):
            job, said = by_request[id(update.request)], update.said
            tokens = job.tokens.setdefault(said.choice, [])
            tokens += said.tokens
            completion = None
            if said.finish:
                whole = cast(TextStream, said.matcher).text
                completion = completed(job.strategy.rules, said, tokens, whole, job.request.timings)
            yield Piece(job.index, said.choice, new, tuple(token.id for token in said.tokens), completion)


def _new_text(update: Update) -> str:
    """What can be shown of a text since the last time."""
    text = update.said.matcher
    if not isinstance(text, TextStream):
        return ""
    return text.take() + (text.finish() if update.said.finish else "")


def _each(kind: str, given: Any, make: Callable[[Any, int], T]) -> list[T]:
    """What is made of each of several prompts, or of one. Raises UsageError, with its number where there are several,
    for one that cannot be taken."""
    made, several = list[T](), as_list(given)
    for index, one in enumerate(several):
        try:
            made.append(make(one, index))
        except UsageError as error:
            if len(several) == 1:
                raise
            raise UsageError(f"{kind} {index + 1} of {len(several)}: {error}") from None
    return made
