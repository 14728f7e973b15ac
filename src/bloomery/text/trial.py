"""A program that tries to compile a grammar, in a process that may die of it. Imports nothing of bloomery.

Some grammars take minutes, all memory, or more stack than there is, whatever the library's own limits: it is run by
`compile.py` as a file of its own, with limits that the system keeps. From stdin comes a job as JSON, to stdout go an
error, empty where there is none, and the place of a schema's error, each a line of JSON.
"""

import json
import resource
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

STACK = 2 << 20
"""Bytes of stack that compiling may take: a quarter of what a thread of the caller has."""
PROBES = 500
"""Parts of a schema that are tried to find the place of its error."""


class Bytes:
    """A token for each byte and the model's special ones, as the library wants to be given a tokenizer. What makes a
    grammar hard to compile is the grammar, not the vocabulary.

    Args:
        special: names of special tokens by id.
        end: the one that ends a text.
        size: of the vocabulary.
    """

    is_tokenizer_wrapper, bos_token_id = True, None

    def __init__(self, special: dict[int, str], end: int, size: int) -> None:
        self.eos_token_id, self.special_token_ids = end, list(special)
        self.tokens = [b""] * size
        for index, name in special.items():
            self.tokens[index] = name.encode()
        self.ids = [index for index in range(size) if index not in special][:256]
        for byte, index in enumerate(self.ids):
            self.tokens[index] = bytes([byte])

    def __call__(self, text: str | bytes) -> list[int]:
        return [self.ids[byte] for byte in (text.encode() if isinstance(text, str) else text)]


def main() -> None:
    """Read the job, take its limits, do it in a thread of little stack."""
    job = json.load(sys.stdin)
    sys.path[:] = job["path"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (job["seconds"], job["seconds"] + 1))
    resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
    threading.stack_size(STACK)
    thread = threading.Thread(target=attempt, args=(job,))
    thread.start()
    thread.join()


def attempt(job: dict[str, Any]) -> None:
    """Say what is wrong, and of a schema where."""
    error = wrong(job["grammar"], job)
    print(json.dumps(error), flush=True)
    if error and job["schema"] is not None:
        print(json.dumps(place(job["schema"], error, job)), flush=True)


def wrong(grammar: str, job: dict[str, Any]) -> str:
    """Why a grammar cannot be used, empty where it can."""
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    special = {int(index): name for index, name in job["special"].items()}
    tokens: Any = Bytes(special, job["end"], max(job["size"], 256 + len(special)))
    matcher = LLMatcher(LLTokenizer(tokens), grammar, log_level=0, limits=LLParserLimits(**job["limits"]))
    if not matcher.is_error():
        matcher.compute_bitmask()
        if matcher.is_stopped() and not matcher.is_accepting():
            return "it admits no text"
    return matcher.get_error()


def place(schema: Any, error: str, job: dict[str, Any]) -> str:
    """The innermost part of a schema that has the same error alone, such as /properties/age; empty for the whole."""
    from llguidance import LLMatcher

    named = {key: schema[key] for key in ("$defs", "definitions") if isinstance(schema, dict) and key in schema}
    found = ""
    for path, part in islice(parts(schema), PROBES):
        if path.startswith(found) and path != found:
            grammar = LLMatcher.grammar_from_json_schema({**named, **part}, overrides=job["overrides"])
            if cause(wrong(grammar, job)) == cause(error):
                found = path
    return found


def cause(error: str) -> str:
    """A message without the way by which the library came there."""
    return error.partition("\n  while processing")[0]


def parts(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object within a JSON value and its place, the outer ones first."""
    if isinstance(value, dict):
        yield path, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from parts(one, f"{path}/{key}")


if __name__ == "__main__":
    main()
