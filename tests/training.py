"""Small decoders to train, and batches for them. Knows no test."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bloomery.train.loss import SequenceLoss
from bloomery.train.model import build, describe
from bloomery.train.optim import Optimizers
from bloomery.train.recipe.config import TrainConfig
from bloomery.train.recipe.pace_options import Optim
from bloomery.train.recipe.run_options import Data, ModelShape, Run
from bloomery.train.step import TrainStep

LENGTH = 24
OPTIONS = Optim(lr=1e-3, weight_decay=0.3, clip=0.5)
"""A norm below that of every step's gradients, so that each is clipped; a decay strong enough to be seen."""


def shape_of(family: str, **more: int) -> ModelShape:
    heads = {"num_kv_heads": 2, "ffn_size": 160} if family in ("llama", "mistral") else {}
    sizes = {"vocab_size": 300, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "seq_len": LENGTH + 1}
    return ModelShape(family=family, **(sizes | heads | more))


def make_loss(family: str, dtype: torch.dtype = torch.float32, **more: int) -> SequenceLoss:
    """A decoder whose weights are all different: with first weights of 0 and 1 some mistakes would not show."""
    shape = shape_of(family, **more)
    decoder = build(describe(shape), shape, 3, torch.device("cpu"))
    with torch.no_grad():
        for i, parameter in enumerate(decoder.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return SequenceLoss(decoder, dtype)


def make_step(loss: SequenceLoss, options: Optim = OPTIONS, **more: int) -> TrainStep:
    return TrainStep(loss, Optimizers(loss.decoder.named_parameters(), options), clip=options.clip, **more)


def windows(step: int, sequences: int = 4, length: int = LENGTH, vocab: int = 300) -> Tensor:
    """(B, T + 1) tokens that can be learned: each step has its own start of one sequence of numbers."""
    noise = torch.randint(0, 4, (sequences, length + 1), generator=torch.Generator().manual_seed(step))
    return (7 * torch.arange(length + 1) + 31 * torch.arange(sequences)[:, None] + noise) % (vocab - 4) + 4


def recipe(out: Path, *, steps: int | None = None, run: dict[str, Any] | None = None, **sections: Any) -> TrainConfig:
    """A recipe of which only what is named matters."""
    options = {"out": out, "steps": steps} | (run or {})
    data = sections.pop("data", Data(train=("text",), valid=("held-out",)))
    return TrainConfig(data=data, run=Run(**options), **sections)
