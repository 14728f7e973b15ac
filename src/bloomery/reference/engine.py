"""ReferenceLLM: the requests of LLM, answered by transformers' generate. Knows nothing of our decoder and our engine.

Prompts are run one at a time: several of one batch would be padded, and some of transformers' processors (n-grams, the
prompt's penalties) take padding for text.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from bloomery.checkpoint.folder import Folder, read_folder
from bloomery.checkpoint.load import natural_dtype
from bloomery.checkpoint.store import open_tensors
from bloomery.checkpoint.tensors import EMBEDDING
from bloomery.checkpoint.tokenizer import open_tokenizer
from bloomery.completion import Completion, Piece, completed
from bloomery.devices import pick_device, pick_dtype
from bloomery.engine.continuation import Continuation, Rules, reported
from bloomery.engine.engine import DecodeClock
from bloomery.engine.params import SamplingParams
from bloomery.engine.processors.chain import check_vocabulary
from bloomery.engine.request import Timings
from bloomery.engine.strategy import FinishReason, Said, Token
from bloomery.errors import UsageError
from bloomery.hub.resolve import resolve
from bloomery.reference.load import load_model
from bloomery.reference.options import generation_config, refuse_unknown
from bloomery.reference.watch import Finite, Watch
from bloomery.text.prompt import Prompt, PromptReader, Truncate, as_list
from bloomery.text.stream import TextStream
from bloomery.text.words import word_ids


class ReferenceLLM:
    """A model, ready, run by transformers.

    Args:
        model, dtype, device, max_seq_len, revision, offline, token: as of `LLM`.

    Raises:
        MissingExtra: transformers is not installed.
        UsageError: the model is a store, which transformers cannot read; else as of `LLM`.
        CheckpointError: as of `LLM`.
    """

    def __init__(
        self,
        model: str | Path = "dickens",
        *,
        dtype: str = "auto",
        device: str = "auto",
        max_seq_len: int | None = None,
        revision: str | None = None,
        offline: bool = False,
        token: str | None = None,
    ) -> None:
        self.folder = read_folder(resolve(model, revision, offline, token))
        if self.folder.manifest is not None:
            raise UsageError(
                f"{self.folder.path} is a store, which transformers cannot read: write it as a Hugging Face folder "
                "with 'bloomery export', and give that"
            )
        limit = self.folder.config.max_seq_len
        if max_seq_len is not None and not 2 <= max_seq_len <= limit:
            raise UsageError(f"max_seq_len is {max_seq_len}: give 2 to {limit}, the model's own limit, or leave it out")
        self.tokenizer = open_tokenizer(self.folder)
        self.prompts = PromptReader(self.tokenizer, self.folder.config.vocab_size, max_seq_len or limit)
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype) or _natural(self.folder, self.device)
        self.model: Any = load_model(self.folder.path, self.dtype, self.device)
        from transformers import GenerationConfig

        # What nobody asked for would be taken from the checkpoint's: a temperature, penalties.
        self.model.generation_config = GenerationConfig()
        self.decoding = DecodeClock()

    @property
    def name(self) -> str:
        """The program that answers, and its version."""
        return f"transformers {version('transformers')}"

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        truncate: Truncate | None = None,
    ) -> list[Completion]:
        """Complete every prompt; as `LLM.generate`.

        Raises:
            UsageError: as `LLM.generate`, or transformers has no option for what was asked.
        """
        pieces = self.stream(prompts, params, truncate=truncate)
        return [piece.completion for piece in pieces if piece.completion is not None]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        truncate: Truncate | None = None,
    ) -> Iterator[Piece]:
        """As `generate`, giving each prompt's texts when they are complete. Every prompt is checked before the first
        one runs."""
        params = self._in_ids(params or SamplingParams())
        return self._pieces([self._rules(prompt, params, truncate) for prompt in as_list(prompts)])

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt. Raises UsageError for one that no model can take."""
        return self.prompts.encode(prompt)

    def _in_ids(self, params: SamplingParams) -> SamplingParams:
        """Options whose words are ids, all of which exist, and all of which transformers knows."""
        refuse_unknown(params)
        if self.tokenizer is None and (params.bad_words or params.stop_strings):
            what = "bad_words" if params.bad_words else "stop_strings"
            raise UsageError(f"the model has no tokenizer.json: {what} need one")
        if self.tokenizer is not None and params.bad_words:
            found = [",".join(map(str, ids)) for word in params.bad_words for ids in word_ids(self.tokenizer, word)]
            params = replace(params, bad_words=(), bad_words_ids=(*params.bad_words_ids, *found))
        check_vocabulary(params, self.folder.config.vocab_size)
        return params

    def _rules(self, prompt: Prompt, params: SamplingParams, truncate: Truncate | None) -> Rules:
        """One prompt's, refused where our own engine would refuse them. Time is transformers' to measure."""
        if params.max_length is None:
            ids = self.prompts.with_room_for(params.most_new_tokens(0), prompt, truncate)
        else:
            ids = self.prompts.within(params.max_length, prompt, truncate)
        return Rules(ids, params, self.folder.eos_ids, clock=lambda: 0.0)

    def _pieces(self, requests: list[Rules]) -> Iterator[Piece]:
        arrived = perf_counter()
        for index, rules in enumerate(requests):
            for done in self._complete(rules, arrived):
                yield Piece(index, done.choice, done.text, done.token_ids, done)

    def _complete(self, rules: Rules, arrived: float) -> list[Completion]:
        """All texts of a prompt."""
        started = perf_counter()
        watch = Watch(len(rules.prompt), (lambda: self._text(rules)) if rules.params.stop_strings else None)
        prompt = torch.tensor([rules.prompt], device=self.device)
        with _seeded(rules.seed, self.device):
            out = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=generation_config(rules.params, self.folder.eos_ids),
                logits_processor=[Finite(len(rules.prompt), rules.ends)],
                stopping_criteria=[watch],
            )
        ended = perf_counter()
        first = ended if watch.first_token is None else watch.first_token
        timings = Timings(started - arrived, first - arrived, ended - arrived)
        texts = [self._completion(rules, out, choice, timings) for choice in range(len(out.sequences))]
        self.decoding.steps += out.sequences.shape[1] - len(rules.prompt) - 1
        self.decoding.tokens += sum(len(text.token_ids) - 1 for text in texts)
        self.decoding.seconds += ended - first
        return texts

    def _completion(self, rules: Rules, out: Any, choice: int, timings: Timings) -> Completion:
        """One of the returned rows, without what stands behind its end."""
        text = self._text(rules)
        grown = Continuation(rules, text)
        finish: FinishReason | None = None
        for place, token in enumerate(out.sequences[choice, len(rules.prompt) :].tolist()):
            finish = grown.add(_reported(rules, out, choice, place, token))
            if finish is not None:
                break
        text.take()
        text.finish()
        score = float(out.sequences_scores[choice]) if rules.params.num_beams > 1 else None
        # Neither an end nor the full length: max_time has run out.
        said = Said(finish=finish or "length", choice=choice, score=score)
        return completed(rules, said, grown.tokens, text.text, timings)

    def _text(self, rules: Rules) -> TextStream:
        decode = self.tokenizer.decode if self.tokenizer else lambda _: ""
        return TextStream(decode, rules.params.stop_strings, rules.prompt)


def _reported(rules: Rules, out: Any, choice: int, place: int, token: int) -> Token:
    """A token with its log-probabilities, where they are wanted: those of the row that it was chosen in."""
    if rules.params.logprobs is None:
        return Token(token)
    row = int(out.beam_indices[choice, place]) if rules.params.num_beams > 1 else choice
    return reported([token], out.logits[place][row][None], rules.params.logprobs)[0]


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's own generators, which transformers draws from, as the seed sets them; afterwards as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _natural(folder: Folder, device: torch.device) -> torch.dtype:
    """What our own engine would compute in."""
    return natural_dtype(open_tensors(folder).kind(EMBEDDING).dtype, device)
