"""What an engine is told and how it answers, turn by turn, on its own pipe. Knows no engine.

The standard library alone: an engine runs in an environment of its own, which may have nothing else.

    python -m peers.cpu.turn MODULE JOB.json

Each line that comes is a request, each line that goes the answer; between them the engine sleeps. An error is an answer
too, and the last one.
"""

import json
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, Protocol

from peers.memory import memory


class Shape(NamedTuple):
    """So many prompts at once, each of so many tokens, and so many new tokens behind each."""

    requests: int
    prompt_length: int
    new_tokens: int

    @property
    def positions(self) -> int:
        """Of one text."""
        return self.prompt_length + self.new_tokens


@dataclass(frozen=True)
class Job:
    """A model that was converted for an engine, in which form, and all that will be asked for."""

    model: str
    form: str
    threads: int
    shapes: tuple[Shape, ...]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Job":
        raw = json.loads(path.read_text(encoding="utf-8"))
        return cls(**raw | {"shapes": tuple(Shape(*shape) for shape in raw["shapes"])})


class Texts:
    """Tokens of several texts as they come, and when, in seconds from the beginning."""

    def __init__(self, count: int) -> None:
        self.ids: list[list[int]] = [[] for _ in range(count)]
        self.arrivals: list[list[float]] = [[] for _ in range(count)]
        self._began = perf_counter()

    def came(self, tokens: Iterable[tuple[int, int]]) -> None:
        """(text, token) of each that came now."""
        now = perf_counter() - self._began
        for index, token in tokens:
            self.ids[index].append(int(token))
            self.arrivals[index].append(now)


class Engine(Protocol):
    """A module of an engine has `load(job) -> Engine`."""

    versions: dict[str, str]

    def facts(self) -> dict[str, Any]:
        """What else is to be kept with its figures."""

    def run(self, prompts: Sequence[list[int]], new_tokens: int) -> Texts:
        """Greedily behind all prompts at once, past every end of sequence."""


def main(module: str, path: str) -> int:
    # What libraries print must not come between the answers.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=out, flush=True)

    try:
        job, began = Job.read(Path(path)), perf_counter()
        load = import_module(module).load
        imported = perf_counter()
        engine: Engine = load(job)
        loaded = perf_counter()
        times = {"import_s": imported - began, "load_s": loaded - imported}
        answer(times | {"versions": engine.versions, "facts": engine.facts()})
        for line in iter(sys.stdin.readline, ""):
            request = json.loads(line)
            texts = engine.run(request["prompts"], request["new_tokens"])
            answer({"ids": texts.ids, "arrivals": texts.arrivals, "peak_bytes": memory("VmHWM:")})
    except Exception as error:
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
