"""Engines in processes of their own, waiting for their turns, and what is believed of their answers. Knows no engine.

Whatever is wrong with an engine is `NotAvailable`, with the reason in its own words: the others go on without it.
"""

import json
import select
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import Any

from peers.cpu.checkpoint import environment
from peers.cpu.engines import NotAvailable
from peers.cpu.turn import Job, Shape

PAUSE = 0.3
"""Seconds before a turn. Threads of the engine before it may wait for more work without sleeping: with Intel's OpenMP,
200 ms."""
LONGEST = 1200.0
"""Seconds within which an answer must come."""


class Running:
    """One engine: what it said when it was ready, and what it answers."""

    def __init__(self, name: str, process: "subprocess.Popen[str]", log: Path) -> None:
        self.name, self.process, self.log = name, process, log
        self.ready = self._answer()

    def ask(self, prompts: Sequence[list[int]], shape: Shape, vocab_size: int) -> dict[str, Any]:
        """Its answer to prompts, which is known to be what was asked for.

        Raises:
            NotAvailable: an error, a miscount, or silence.
        """
        sleep(PAUSE)
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which reading tells
            request = {"prompts": list(prompts), "new_tokens": shape.new_tokens}
            print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self._answer()
        check(answer, shape, vocab_size)
        return answer

    def _answer(self) -> dict[str, Any]:
        out = self.process.stdout
        assert out is not None
        if not select.select([out], [], [], LONGEST)[0]:
            raise NotAvailable(f"no answer within {LONGEST:.0f} s")
        line = out.readline()
        if not line:
            said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = f": {said[-1]}" if said else ""
            raise NotAvailable(f"it ended with exit code {self.process.wait()}{last}")
        answer = json.loads(line)
        if "error" in answer:
            raise NotAvailable(answer["error"])
        return answer


@contextmanager
def started(name: str, python: str, module: str, job: Job, folder: Path) -> Iterator[Running]:
    """An engine, loaded. In the end its process is ended.

    Raises:
        NotAvailable: it cannot be loaded.
    """
    file, log = folder / f"{name}.json", folder / f"{name}.log"
    job.write(file)
    threads = {"OMP_NUM_THREADS": str(job.threads)}
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [python, "-m", "peers.cpu.turn", module, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment() | threads,
        )
    with process:
        try:
            yield Running(name, process, log)
        finally:
            process.kill()


def check(answer: dict[str, Any], shape: Shape, vocab_size: int) -> None:
    """Tokens are those that were produced, each of them once.

    Raises:
        NotAvailable: other than asked for: whatever was measured then is of something else.
    """
    ids, arrivals = answer["ids"], answer["arrivals"]
    if not len(ids) == len(arrivals) == shape.requests:
        raise NotAvailable(f"miscount: {len(ids)} texts came of {shape.requests}")
    for index, (tokens, times) in enumerate(zip(ids, arrivals, strict=True)):
        where = f"text {index + 1} of {shape.requests}"
        if not len(tokens) == len(times) == shape.new_tokens:
            raise NotAvailable(
                f"miscount: {where} has {len(tokens)} tokens, and {shape.new_tokens} were to be measured"
            )
        if not all(0 <= token < vocab_size for token in tokens):
            raise NotAvailable(f"{where} has a token beyond the {vocab_size} of the vocabulary")
        if times != sorted(times) or times[0] <= 0:
            raise NotAvailable(f"{where} has tokens that came before those ahead of them")
