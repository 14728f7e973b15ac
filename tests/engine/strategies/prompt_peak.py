"""Run by test_prompt_scores.py in a process of its own: the peak of memory with log-probabilities of a prompt."""

import json
import sys
from pathlib import Path

import torch

from bloomery import LLM, SamplingParams

TOKENS = 2048


def status(key: str) -> int:
    """Bytes of one line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def peak_beyond(llm: LLM, count: int | None) -> tuple[int, int]:
    """Bytes at the peak of one request beyond those before it, and how many tokens of the prompt were reported."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = status("VmRSS")
    params = SamplingParams(max_new_tokens=1, prompt_logprobs=count)
    done = llm.generate([7 * n % 250_000 for n in range(TOKENS)], params)[0]
    return status("VmHWM") - before, len(done.prompt_logprobs or ())


def main(config: str) -> None:
    torch.set_num_threads(1)
    llm = LLM(shape=config, dtype="float32", max_batch_size=1)
    peak_beyond(llm, None)  # the first time touches weights, cache and code
    plain, _ = peak_beyond(llm, None)
    scored, count = peak_beyond(llm, 5)
    print(json.dumps({"plain": plain, "scored": scored, "count": count}))


main(*sys.argv[1:])
