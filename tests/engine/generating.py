"""Run by test_memory.py in a process of its own: generates, and prints what memory that took beyond importing torch."""

import json
import sys
from pathlib import Path
from typing import Any

import torch


def status(key: str) -> int:
    """Bytes of one line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def main(model: str, prompts: int, length: int, new_tokens: int, options: dict[str, Any]) -> None:
    torch.ones(1000).bfloat16().float().sum()  # the first operation loads code
    before = {key: status(key) for key in ("VmRSS", "RssAnon")}
    from bloomery import LLM, SamplingParams
    from bloomery.model.size import nbytes, weights_read

    llm = LLM(model, **options)
    asked = [[(31 * text + place) % 97 + 3 for place in range(length)] for text in range(prompts)]
    done = llm.generate(asked, SamplingParams(max_new_tokens=new_tokens, ignore_eos=True))
    assert all(len(one.token_ids) == new_tokens for one in done)
    cache = llm.engine.runner.cache
    position = 2 * cache.keys.numbers[:, 0, :, 0].nbytes
    taken = {
        "peak": status("VmHWM") - before["VmRSS"],
        "anonymous": status("RssAnon") - before["RssAnon"],
        "weights": nbytes(llm.decoder.parameters()),
        "read": nbytes(iter(weights_read(llm.decoder))),
        "kv": prompts * -(-(length + new_tokens) // 64) * 64 * position,
    }
    print(json.dumps(taken))


main(sys.argv[1], *map(int, sys.argv[2:5]), json.loads(sys.argv[5]))
