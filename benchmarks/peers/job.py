"""What every peer is told, and how it answers: in blocks of steps, on its own pipe. Knows no model and nothing of ours,
since a peer may run in an environment where bloomery is not.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import numpy as np
import torch
from peers.memory import memory
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
"""(B, T) inputs and (B, T) what is to be predicted."""


@dataclass(frozen=True)
class Job:
    """One training of one model. Paths: `model` in Hugging Face format, `tokens` the text, `batches` its samples
    (steps, B, T + 1) in the order in which they are learned; `scratch` belongs to the peer."""

    model: str
    tokens: str
    batches: str
    scratch: str
    rates: tuple[float, ...]
    """The learning rate of each step."""
    dtype: str
    sequences: int
    seq_len: int
    seed: int
    threads: int
    compile: bool
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0

    @property
    def bf16(self) -> bool:
        return self.dtype == "bfloat16"

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Job":
        raw = json.loads(path.read_text(encoding="utf-8"))
        return cls(**raw | {"rates": tuple(raw["rates"])})

    def batch(self, samples: Any, step: int) -> Batch:
        """Of the mapped `batches`, as nanoGPT's get_batch reads a file."""
        windows = torch.from_numpy(samples[step].copy())
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def samples(self) -> Any:
        return np.load(self.batches, mmap_mode="r")


class Pulse:
    """Trains when it is asked to: `ready` before the first step, `stepped` after each. Between two blocks it waits."""

    def __init__(self, versions: dict[str, str]) -> None:
        # What libraries print must not come between the answers.
        self._out: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._versions, self._before = versions, memory("VmRSS:")
        self._losses: list[float] = []

    def ready(self) -> None:
        self._answer({"ready": True, "versions": self._versions})
        self._wait()

    def stepped(self, loss: float) -> None:
        self._losses.append(loss)
        if len(self._losses) < self._wanted:
            return
        seconds = perf_counter() - self._began
        peak = memory("VmHWM:")
        self._answer({"seconds": seconds, "losses": self._losses, "peak": peak, "grown": peak - self._before})
        self._wait()

    def _wait(self) -> None:
        self._losses = []
        line = sys.stdin.readline()
        self._wanted = int(line) if line.strip() else sys.maxsize
        self._began = perf_counter()

    def _answer(self, values: dict[str, Any]) -> None:
        print(json.dumps(values), file=self._out, flush=True)


def adamw(model: nn.Module, job: Job) -> torch.optim.AdamW:
    """The same for every peer: fused, no decay on norms and biases."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": job.weight_decay}, {"params": others, "weight_decay": 0.0}]
    betas = (job.beta1, job.beta2)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=job.rates[0], betas=betas, eps=job.eps, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
