"""Ours, as `LLM` runs it. What it reads in a step is what `model/size` says of the loaded weights."""

from collections.abc import Sequence
from typing import Any

import torch
from peers.cpu.turn import Job, Shape, Texts

import bloomery
from bloomery import LLM, SamplingParams
from bloomery.bench.measure import Asked
from bloomery.bench.report import memory_values
from bloomery.bench.watch import watched
from bloomery.ops.attention import BLOCK

WHOLE = ("float32", "bfloat16")
"""Forms that are a dtype; any other is a quantization of bfloat16."""


class Ours:
    def __init__(self, job: Job) -> None:
        self.versions = {"bloomery": bloomery.__version__, "torch": torch.__version__}
        torch.set_num_threads(job.threads)
        self.shapes = job.shapes
        form: dict[str, Any] = {"dtype": job.form}
        if job.form not in WHOLE:
            form = {"dtype": "bfloat16", "quant": job.form}
        self.llm = LLM(
            job.model,
            max_batch_size=max(shape.requests for shape in job.shapes),
            max_seq_len=max(shape.positions for shape in job.shapes),
            cache_positions=max(shape.requests * -(-shape.positions // BLOCK) * BLOCK for shape in job.shapes),
            **form,
        )

    def facts(self) -> dict[str, Any]:
        """Bytes that a decoding step reads, by the number of texts."""
        decoding = [shape for shape in self.shapes if shape.new_tokens > 1]
        return {"read": {shape.requests: memory_values(self.llm, self._asked(shape), None) for shape in decoding}}

    def run(self, prompts: Sequence[list[int]], new_tokens: int) -> Texts:
        found = watched(self.llm, prompts, SamplingParams(max_new_tokens=new_tokens, ignore_eos=True))
        texts = Texts(len(prompts))
        texts.ids = [list(one.token_ids) for one in found.completions]
        texts.arrivals = [[came.at for came in text for _ in range(came.tokens)] for text in found.texts]
        return texts

    def _asked(self, shape: Shape) -> Asked:
        return Asked(*shape, rounds=1, vocab_size=self.llm.decoder.config.vocab_size)


def load(job: Job) -> Ours:
    return Ours(job)
