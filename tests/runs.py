"""A tiny training run without data: its gradients are random numbers that follow from the step. Knows no file."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bloomery.families import FAMILIES
from bloomery.model.config import DecoderConfig
from bloomery.model.decoder import Decoder
from bloomery.train.optim import Optimizers
from bloomery.train.recipe.pace_options import Optim
from bloomery.train.state.checkpoint import Checkpoints, Progress

FAMILY = FAMILIES["bloom"]
SMALL = 6_000
"""Bytes of a file, so that a tiny model has several."""


def config_of(**changes: Any) -> DecoderConfig:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8}
    asked = DecoderConfig(**(sizes | {"ffn_size": 64, "max_seq_len": 32, "positions": "alibi"} | changes))
    return FAMILY.to_config(FAMILY.from_config(asked))


class Run:
    """A decoder, its optimizer and where they are."""

    def __init__(self, seed: int = 0, optimizer: str = "adamw", **changes: Any) -> None:
        self.decoder = Decoder(config_of(**changes))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.decoder.parameters():
                parameter.normal_(generator=generator)
        self.optimizer = Optimizers(self.decoder.named_parameters(), Optim(name=optimizer, lr=1e-2))  # type: ignore[arg-type]
        self.progress = Progress()

    def go(self, until: int) -> "Run":
        """Steps up to this one."""
        for step in range(self.progress.step + 1, until + 1):
            generator = torch.Generator().manual_seed(step)
            for parameter in self.optimizer.parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            self.optimizer.step(0.01 / step)
            self.progress = Progress(step=step, samples=8 * step, tokens=256 * step, seconds=step / 3)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint must bring back, copied."""
        found = {name: parameter.detach().clone() for name, parameter in self.decoder.named_parameters()}
        for name, kept in self.optimizer.state().items():
            found |= {f"{key} of {name}": tensor.clone() for key, tensor in kept.items()}
        return found


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not the same, bit for bit."""
    assert one.keys() == other.keys()
    return [
        name
        for name, tensor in one.items()
        if (tensor.dtype, tensor.shape) != (other[name].dtype, other[name].shape)
        or not torch.equal(tensor.reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8))
    ]


def checkpoints_of(run: Run, folder: Path, keep: int = 2, **more: Any) -> Checkpoints:
    """The run's checkpoints in RUN/checkpoints; `beside`: files beside config.json."""
    config = run.decoder.config
    beside = {"config.json": json.dumps(FAMILY.from_config(config)).encode()} | more.pop("beside", {})
    options = {"file_bytes": SMALL} | more
    return Checkpoints(folder / "checkpoints", keep=keep, beside=beside, family=FAMILY, config=config, **options)


def saved(run: Run, folder: Path, *steps: int, **more: Any) -> Checkpoints:
    """Go on to each step and save there."""
    checkpoints = checkpoints_of(run, folder, **more)
    for step in steps:
        checkpoints.save(run.go(step).decoder, run.optimizer, run.progress)
    checkpoints.wait()
    return checkpoints
