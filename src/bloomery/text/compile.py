"""Grammars made from their sources, for one model's tokens, within limits. Knows no engine."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as Backend

from bloomery.errors import BloomeryError, MissingExtra, UsageError
from bloomery.text.grammar import Grammar, one_line
from bloomery.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

SCHEMAS = ("json_schema", "json_object")
SECONDS = 5
"""Of a processor, for compiling. The library takes milliseconds for what people write and up to a second for the
largest; what takes longer grows without end (a multiple of 100,003 takes half a second, one of 1,000,003 ten)."""
PATIENCE = 60
"""Seconds of a clock after which that is given up all the same."""
MEMORY = 1 << 30
"""Bytes of address space, for compiling: what compiles in time was seen to take a quarter of it at most."""
KEPT = 32
"""Compiled grammars that are kept for requests to come, the last ones asked for."""
LIMITS = {"verbose_errors": False, "precompute_large_lexemes": False}
"""Of the library, beside its own: nothing is done over the whole vocabulary, so that the trial, which has none, is as
much work as the real thing."""
OVERRIDES: Any = {"lenient": False, "whitespace_pattern": r"( |\n[ ]{0,32})?"}
"""How schemas are read: unknown keywords are refused, and between the parts of JSON stands nothing, a space, or a line
break with some. Else a model may go on with spaces for ever."""
TRIAL = Path(__file__).with_name("trial.py")
DEATHS = {
    signal.SIGXCPU: f"compiling it takes more than {SECONDS} s",
    signal.SIGKILL: f"compiling it takes more than {SECONDS} s, or too much memory",
    signal.SIGSEGV: "it is nested too deeply",
    signal.SIGBUS: "it is nested too deeply",
    signal.SIGABRT: f"compiling it takes more than {MEMORY >> 30} GiB, or nests too deeply",
}
"""What the end of the trial by a signal means."""


class Grammars:
    """Makes grammars for one model.

    Args:
        tokenizer: None where the model has none.
        vocab_size: tokens of the model; more than the tokenizer has are never chosen.
        ends: tokens that end a text.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, ends: Sequence[int]) -> None:
        self._tokenizer, self._size, self._ends = tokenizer, vocab_size, tuple(ends)
        self._compiled = lru_cache(KEPT)(self._compile)

    def grammar(self, kind: str, source: str, *, closing: bool = True) -> Grammar:
        """The form that a text must have, before its first token.

        Args:
            kind: json_schema, json_object, regex or grammar, as the option that asks for it.
            source: a JSON schema, a regular expression or a Lark grammar. The whole text matches it.
            closing: whether the model may end the text, where it may end, by a token for that.

        Raises:
            MissingExtra: llguidance is not installed.
            UsageError: it cannot be read, admits no text, or is too large; the model has no tokenizer, or one that
                cannot write it.
        """
        matcher, stand_in = self._compiled(kind, source)
        made = Grammar(matcher.deep_copy(), self._size, self._ends, closing=closing, stand_in=stand_in, name=kind)
        if not made.allowed().any():
            raise UsageError(f"{kind} begins with nothing that the model has a token for: change it")
        return made

    def _compile(self, kind: str, source: str) -> tuple["LLMatcher", int]:
        try:
            from llguidance import LLMatcher, LLParserLimits
        except ImportError:
            raise MissingExtra("llguidance", "grammar") from None
        if self._tokenizer is None:
            raise UsageError(f"the model has no tokenizer.json: {kind} needs one")
        text = _in_their_form(kind, source)
        tokens, end, special = self._tokens
        _try(kind, source, {"grammar": text, "end": end, "special": special, "size": tokens.vocab_size})
        matcher = LLMatcher(tokens, text, log_level=0, limits=LLParserLimits(**LIMITS))
        if matcher.is_error():
            raise UsageError(f"{kind} cannot be used with this model's tokenizer: {one_line(matcher.get_error())}")
        return matcher, end

    @cached_property
    def _tokens(self) -> tuple["LLTokenizer", int, dict[int, str]]:
        """The tokenizer as the library reads it, the token by which it says that a text may end, and special ones."""
        from llguidance import LLTokenizer

        assert self._tokenizer is not None
        backend = self._tokenizer.backend
        size = backend.get_vocab_size()
        known = [index for index in (*self._ends, *_special(backend)) if index < size]
        if not known:  # a token of its own, in a copy
            backend = Backend.from_str(backend.to_str())
            backend.add_special_tokens(["<|end of text|>"])
            known, size = [size], size + 1
        try:
            tokens = LLTokenizer(backend.to_str(), n_vocab=max(size, self._size), eos_token=known[0])
        except ValueError as error:
            raise UsageError(f"this model's tokenizer takes no json_schema, regex or grammar: {error}") from None
        return tokens, known[0], _special(backend)


def _special(backend: Backend) -> dict[int, str]:
    return {index: token.content for index, token in backend.get_added_tokens_decoder().items() if token.special}


def _in_their_form(kind: str, source: str) -> str:
    """A grammar as the library takes it."""
    from llguidance import LLMatcher

    if kind in SCHEMAS:
        try:
            return LLMatcher.grammar_from_json_schema(source, overrides=OVERRIDES)
        except ValueError as error:
            raise UsageError(f"{kind}: {one_line(str(error))}") from None
    return LLMatcher.grammar_from_regex(source) if kind == "regex" else LLMatcher.grammar_from_lark(source)


def _try(kind: str, source: str, job: dict[str, Any]) -> None:
    """Compile it in another process. Raises UsageError where that fails, or does not end."""
    job |= {"path": sys.path, "limits": LIMITS, "overrides": OVERRIDES}
    job |= {"seconds": SECONDS, "memory": MEMORY, "schema": json.loads(source) if kind in SCHEMAS else None}
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(TRIAL)],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"{kind}: compiling it takes more than {PATIENCE} s: simplify it") from None
    except OSError as error:
        raise BloomeryError(f"{kind}: {sys.executable!r} cannot be run to compile it ({error})") from None
    said = done.stdout.splitlines()
    if not said:
        why = DEATHS.get(signal.Signals(-done.returncode)) if done.returncode < 0 else None
        raise UsageError(f"{kind}: {why or f'compiling it fails ({_last(done.stderr)})'}: simplify it")
    wrong, place = json.loads(said[0]), json.loads(said[1]) if len(said) > 1 else ""
    if wrong:
        raise UsageError(_explained(kind, source, wrong, place))


def _explained(kind: str, source: str, error: str, place: str) -> str:
    """A message of the library in one line, with the place in what the user wrote."""
    reason = re.search(r"^error: (.*)", error, re.MULTILINE)
    line = re.match(r"(?:at )?(\d+)\((\d+)\): (.*)", error)
    if kind in SCHEMAS:
        what = "oneOf is not supported: write anyOf" if error.startswith("oneOf ") else one_line(error)
        return f"{kind}{f' at {place}' if place else ''}: {reason[1] if reason else what}"
    if kind == "regex":
        caret = re.search(r"regex parse error:\n.*\n( *)\^", error)
        at = f" at character {len(caret[1]) - 3}" if caret else ""
        what = re.sub(r'^invalid regex ".*" \(in regex\): (.*?)( in regex /.*/)?$', r"\1", line[3] if line else error)
        return f"regex {source[:80]!r}{at}: {reason[1] if reason else one_line(what)}"
    if line is None:
        return f"grammar: {one_line(error)}"
    what = f"{line[3].removesuffix(' regex parse error:')} {reason[1]}" if reason else one_line(line[3])
    return f"grammar at line {line[1]}, column {line[2]}: {what}"


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no reason given"
