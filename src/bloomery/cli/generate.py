"""`bloomery generate`: text to stdout as it appears, everything else to stderr."""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from time import perf_counter

from bloomery.bench.bandwidth import read_bandwidth
from bloomery.cli.models import own, reference
from bloomery.cli.options import GenerateOptions
from bloomery.completion import Completion, Piece
from bloomery.devices import threads
from bloomery.environment import cache_dir
from bloomery.errors import BloomeryError, UsageError
from bloomery.llm import LLM
from bloomery.log import logger
from bloomery.model.size import nbytes, weights_read
from bloomery.reference.engine import ReferenceLLM
from bloomery.reference.options import refuse_unknown

ANY_ENGINE = frozenset({"prompts", "ids", "truncate", "json", "engine", "running", "sampling"})
"""Options that mean the same whichever engine runs."""


def run(options: GenerateOptions) -> int:
    """Generate, and say how fast. Ctrl-C keeps the text so far and exits with 130."""
    for name in ("logprobs", "prompt_logprobs"):
        if getattr(options.sampling, name) is not None and not options.json:
            raise UsageError(f"--{name.replace('_', '-')} needs --json, which has a place for them")
    if options.shape_seed is not None and options.shape is None:
        raise UsageError("--shape-seed is for --shape: to sample by a seed, give --seed")
    prompts = [_as_ids(prompt) if options.ids else prompt for prompt in _read_prompts(options.prompts)]
    began = perf_counter()
    llm = _own(options, len(prompts)) if options.engine == "bloomery" else _reference(options)
    if llm.tokenizer is None and not options.ids:
        raise UsageError(f"{llm.folder.path} has no tokenizer.json: give token ids with --ids")
    logger.debug("loaded %s in %.2f s (%s on %s)", llm.folder.path, perf_counter() - began, llm.dtype, llm.device)
    pieces = llm.stream(prompts, options.sampling, truncate=options.truncate)
    if sys.stderr is not None and sys.stderr.isatty() and not options.json and len(prompts) == 1:
        print(f"\x1b[2m{prompts[0]}\x1b[0m", end="", file=sys.stderr, flush=True)
    output = _Output(options, len(prompts))
    try:
        for piece in pieces:
            output.take(piece)
    except KeyboardInterrupt:
        output.flush()
        _report(llm, output, interrupted=True)
        return 130
    except BloomeryError:
        output.flush()  # the other texts, as far as they came
        raise
    output.close()
    _report(llm, output)
    return 0


def _own(options: GenerateOptions, prompts: int) -> LLM:
    # Seats that nobody will take would reserve memory for nothing.
    seats = min(options.running.max_batch_size, prompts * options.sampling.sequences)
    return own(options, replace(options.running, max_batch_size=seats), options.draft)


def _reference(options: GenerateOptions) -> ReferenceLLM:
    refuse_unknown(options.sampling)  # before a large model is loaded for nothing
    return reference(options, options.running, ANY_ENGINE)


def _read_prompts(words: Sequence[str]) -> list[str]:
    """The prompts given, or all of stdin as one.

    Raises:
        UsageError: stdin is not UTF-8, or there is nothing to read.
    """
    if words and tuple(words) != ("-",):
        if "-" in words:
            raise UsageError("'-' reads one prompt from stdin: give it alone")
        return list(words)
    if sys.stdin is None or (not words and sys.stdin.isatty()):
        raise UsageError("no prompt: give one in quotes, or pipe one in")
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not valid UTF-8 at byte {error.start}: convert it first") from None
    return [text.removesuffix("\n")]


def _as_ids(prompt: str) -> list[int]:
    try:
        return [int(word) for word in prompt.split()]
    except ValueError:
        raise UsageError(f"--ids wants whole numbers separated by spaces, not '{prompt}'") from None


class _Output:
    """What goes to stdout: the first text as it comes, then the second, and so on; those of one prompt together."""

    def __init__(self, options: GenerateOptions, prompts: int) -> None:
        self.options = options
        self.texts = options.sampling.num_return_sequences  # of each prompt
        self.held: list[list[Piece]] = [[] for _ in range(prompts * self.texts)]
        self.current = 0
        self.begun = False  # something of the current text is on stdout
        self.shown = 0  # texts that are
        self.completions: list[Completion] = []
        self.tokens = 0

    def take(self, piece: Piece) -> None:
        self.tokens += len(piece.token_ids)
        if piece.completion is not None:
            self.completions.append(piece.completion)
        self.held[piece.index * self.texts + piece.choice].append(piece)
        while self.current < len(self.held) and self._advance():
            self.current += 1

    def close(self) -> None:
        """Show what waits behind a text that never came: a search may find fewer than were asked for."""
        missing = 0
        while self.current < len(self.held):
            missing += not self.held[self.current]
            if self.held[self.current]:
                self._advance()
            self.current += 1
        if missing:
            logger.warning("%d of the texts asked for were not found: the options allow no more", missing)

    def flush(self) -> None:
        """Show what there is of every text: it was interrupted."""
        for held in self.held[self.current :]:
            if self.options.json and held:
                done = held[-1].completion
                partial = {"text": "".join(piece.text for piece in held), "finish_reason": "interrupted"}
                print(json.dumps(_as_json(done) if done else partial, ensure_ascii=False))
            elif not self.options.json and (held or self.begun):
                print("".join(self._shown(piece) for piece in held))
            self.begun = False
        sys.stdout.flush()

    def _advance(self) -> bool:
        """Show what the current text has; True when it is complete."""
        held = self.held[self.current]
        if not held:
            return False
        done = held[-1].completion
        if self.options.json:
            if done is not None:
                print(json.dumps(_as_json(done), ensure_ascii=False), flush=True)
            return done is not None
        between = "\n" if self.shown and not self.begun else ""
        text = "".join(self._shown(piece) for piece in held)
        print(between + text, end="" if done is None else "\n", flush=True)
        held.clear()
        self.begun = done is None
        self.shown += done is not None
        return done is not None

    def _shown(self, piece: Piece) -> str:
        return "".join(f"{token} " for token in piece.token_ids) if self.options.ids else piece.text


def _as_json(done: Completion) -> dict[str, object]:
    value = asdict(replace(done, logprobs=None, prompt_logprobs=None))
    for name, tokens in (("logprobs", done.logprobs), ("prompt_logprobs", done.prompt_logprobs)):
        if tokens is None:
            del value[name]
        else:
            value[name] = [{"id": t.id, "logprob": t.logprob, "top": t.top} for t in tokens]
    return value


def _report(llm: LLM | ReferenceLLM, output: _Output, *, interrupted: bool = False) -> None:
    """The closing line: what was made, how fast, and how near to what the memory can deliver."""
    if not logger.isEnabledFor(logging.INFO):
        return
    clock = llm.decoding
    parts = [f"{output.tokens} tokens" + (", interrupted" if interrupted else "")]
    if output.completions:
        parts.append(f"TTFT {1000 * output.completions[0].timings.ttft:.0f} ms")
    if clock.steps:
        parts.append(f"{clock.tokens / clock.seconds:.1f} tok/s")
        if isinstance(llm, LLM):
            parts.append(_weights_read(llm))
    parts += _speculated(output.completions)
    logger.info(" · ".join(parts))


def _speculated(completions: list[Completion]) -> list[str]:
    """How many guesses were right, and what that made of a step."""
    found = [(one.speculation, len(one.token_ids)) for one in completions if one.speculation is not None]
    if not found:
        return []
    proposed, accepted, steps = (
        sum(getattr(one, name) for one, _ in found) for name in ("proposed", "accepted", "steps")
    )
    share = f"acceptance {100 * accepted / proposed:.0f} %" if proposed else "nothing guessed"
    return [f"{share}, {sum(tokens for _, tokens in found) / steps:.1f} tokens a step"]


def _weights_read(llm: LLM) -> str:
    """How fast, and how near to what the memory can deliver."""
    weights = [weight for weight in weights_read(llm.decoder) if weight.device.type == "cpu"]
    read = nbytes(weights_read(llm.decoder)) * llm.decoding.steps
    read += nbytes(weights_read(llm.draft)) * llm.decoding.draft_steps if llm.draft is not None else 0
    speed = read / llm.decoding.seconds / 1e9
    share = ""
    if weights:
        ruler = read_bandwidth(weights, threads(), cache_dir())
        by = "" if ruler.ruler == "native" else f", measured with {ruler.ruler}"
        share = f" ({100 * speed / ruler.gb_per_s:.0f} % of {ruler.gb_per_s:.1f} GB/s read bandwidth{by})"
    return f"{speed:.1f} GB/s of weights read{share}"
