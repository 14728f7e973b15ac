"""Run by benchmarks/memory.py, each case in a process of its own: what generating takes. Imports bloomery when it has
looked at what is there before."""

import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from memory import memory


def generate(path: str, texts: int, length: int, new_tokens: int, options: dict[str, Any]) -> dict[str, float]:
    """Memory of generating, and seconds of all of it but loading."""
    torch.ones(1000).bfloat16().float().sum()  # the first operation loads code
    resident, anonymous = memory("VmRSS:"), memory("RssAnon:")
    from bloomery import LLM, SamplingParams
    from bloomery.model.size import kv_bytes, nbytes

    llm = LLM(path, **options)
    began = perf_counter()
    prompts = [[(31 * text + place) % 997 + 3 for place in range(length)] for text in range(texts)]
    for one in llm.generate(prompts, SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)):
        assert len(one.token_ids) == new_tokens
    dtype = llm.engine.runner.cache.keys.numbers.dtype
    return {
        "resident": memory("VmHWM:") - resident,
        "anonymous": memory("RssAnon:") - anonymous,
        "weights": nbytes(llm.decoder.parameters()),
        "kv": kv_bytes(llm.decoder.config, length + new_tokens, texts, dtype),
        "seconds": perf_counter() - began,
    }


def tokenizer(path: str) -> int:
    """Bytes of a tokenizer by itself."""
    import tokenizers

    before = memory("RssAnon:")
    found = tokenizers.Tokenizer.from_file(str(Path(path) / "tokenizer.json"))
    found.encode("It was")
    return memory("RssAnon:") - before


def pages(path: str, rounds: int) -> dict[str, Any]:
    """Steps of one text with mapped weights and with copied ones, in turns: milliseconds, and how the memory reads."""
    from bloomery import LLM, SamplingParams
    from bloomery.bench.bandwidth import read_bandwidth
    from bloomery.model.size import weights_read

    llms = {"mapped": LLM(path, max_batch_size=1), "copied": LLM(path, max_batch_size=1, huge_pages=True)}
    params = SamplingParams(max_new_tokens=24, ignore_eos=True)
    found: dict[str, Any] = {name: {"ms": [], "gb_per_s": []} for name in llms}
    for place in range(rounds + 1):
        for name, llm in llms.items():
            seconds, steps = llm.decoding.seconds, llm.decoding.steps
            llm.generate([list(range(100, 132))], params)
            ms = 1000 * (llm.decoding.seconds - seconds) / (llm.decoding.steps - steps)
            if place:  # the first one reads the file
                found[name]["ms"].append(ms)
                read = read_bandwidth(list(weights_read(llm.decoder)), torch.get_num_threads(), None)
                found[name]["gb_per_s"].append(read.gb_per_s)
    ratios = [one / other for one, other in zip(found["mapped"]["ms"], found["copied"]["ms"], strict=True)]
    return found | {"mapped_over_copied": ratios}


CHILDREN = {"generate": generate, "tokenizer": tokenizer, "pages": pages}


if __name__ == "__main__":
    print(json.dumps(CHILDREN[sys.argv[1]](*json.loads(sys.argv[2]))))
