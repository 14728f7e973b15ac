"""llama.cpp through llama-cpp-python's low-level calls: one batch of several sequences a step. Knows nothing of ours.

Its defaults but for threads and room. The greedy choice is numpy's, which is faster than a sampler of theirs.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from peers.cpu.turn import Job, Texts

LOG = llama_cpp.llama_log_callback(lambda level, text, data: None)
"""Says nothing. Kept here, since the library calls it as long as it lives."""


class Context:
    """Room for so many sequences of so many positions, and the batch that fills it."""

    def __init__(self, model: Any, sequences: int, positions: int, threads: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max = sequences
        params.n_ctx = sequences * -(-positions // 256) * 256  # they cut each sequence's part to multiples of 256
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self.most = params.n_batch
        self.handle = llama_cpp.llama_init_from_model(model, params)
        if self.handle is None:
            raise MemoryError(f"no context for {sequences} sequences of {positions} positions")
        self.batch = llama_cpp.llama_batch_init(self.most, 0, 1)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.handle), False)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """(token, position, sequence, whether its logits are wanted) of each row."""
        if len(rows) > self.most:
            raise ValueError(f"{len(rows)} tokens in a batch of at most {self.most}")
        batch = self.batch
        batch.n_tokens = len(rows)
        for place, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[place], batch.pos[place], batch.logits[place] = token, position, wanted
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = sequence
        failed = llama_cpp.llama_decode(self.handle, batch)
        if failed:
            raise RuntimeError(f"llama_decode of {len(rows)} tokens gave {failed}")


class Llama:
    def __init__(self, job: Job) -> None:
        self.versions = {"llama-cpp-python": llama_cpp.__version__}
        llama_cpp.llama_log_set(LOG, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self.job = job
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(job.model.encode(), params)
        if self.model is None:
            raise OSError(f"{job.model} cannot be loaded")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        rooms: dict[int, int] = {}
        for shape in job.shapes:
            rooms[shape.requests] = max(rooms.get(shape.requests, 0), shape.positions)
        self.contexts = {count: Context(self.model, count, room, job.threads) for count, room in rooms.items()}

    def facts(self) -> dict[str, Any]:
        return {
            "computes with": llama_cpp.llama_print_system_info().decode().strip(),
            "weights_bytes": llama_cpp.llama_model_size(self.model),
            "file_bytes": Path(self.job.model).stat().st_size,
        }

    def run(self, prompts: Sequence[list[int]], new_tokens: int) -> Texts:
        context = self.contexts[len(prompts)]
        context.clear()
        texts = Texts(len(prompts))
        ends = [len(prompt) - 1 for prompt in prompts]
        rows = [
            (token, position, index, position == ends[index])
            for index, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        for step in range(new_tokens):
            context.decode(rows)
            wanted = [place for place, row in enumerate(rows) if row[3]]
            tokens = [self._likeliest(context, place) for place in wanted]
            texts.came(enumerate(tokens))
            rows = [(token, ends[index] + 1 + step, index, True) for index, token in enumerate(tokens)]
        return texts

    def _likeliest(self, context: Context, place: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(context.handle, place)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocab_size,)).argmax())


def load(job: Job) -> Llama:
    return Llama(job)
