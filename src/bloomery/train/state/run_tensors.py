"""A run's tensors by the names that checkpoints have: one name each, however many ranks there are. Knows no file.

A parameter has its decoder's name; a tied head is the embedding. What an optimizer keeps for it has a name in front:
optim.exp_avg.blocks.0.mlp.up.weight.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from bloomery.checkpoint.header import Kind, shown
from bloomery.checkpoint.precision import dtype_name
from bloomery.errors import CheckpointError
from bloomery.model.decoder import Decoder
from bloomery.model.layout import shapes

OPTIM = "optim."
"""Begins the names of an optimizer's tensors."""


class HasState(Protocol):
    """An optimizer, or several."""

    def state(self) -> Mapping[str, Mapping[str, Tensor]]:
        """What is kept for each parameter: its name -> "exp_avg" and so on -> the tensor itself, to be read or filled.
        All are there, also before the first step."""
        ...


def model_tensors(decoder: Decoder) -> tuple[dict[str, Tensor], bool]:
    """What a checkpoint has of a decoder, and whether that is a whole model.

    A decoder that has more than its model has is being trained beside it: those parameters that want a gradient.
    """
    found: dict[str, Tensor] = dict(decoder.named_parameters())
    names = shapes(decoder.config)
    if set(found) == set(names):
        return {name: found[name] for name in names}, True
    return {name: tensor for name, tensor in found.items() if tensor.requires_grad}, False


def optimizer_tensors(optimizer: HasState) -> dict[str, Tensor]:
    """An optimizer's own tensors. A single number is a tensor of one here: DCP leaves those without a dimension out
    where it puts the files of many ranks together."""
    return {
        f"{OPTIM}{key}.{name}": tensor if tensor.ndim else tensor.view(1)
        for name, kept in optimizer.state().items()
        for key, tensor in kept.items()
    }


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, which nothing else changes."""
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach())
        for name, tensor in tensors.items()
    }


def refuse_differences(path: Path, there: Mapping[str, Kind], wanted: Mapping[str, Tensor]) -> None:
    """A checkpoint must have exactly the tensors of the run, each in its shape and dtype.

    Raises:
        CheckpointError: names the first that differs.
    """
    hint = "model and optimizer must be those of the checkpoint"
    for name, tensor in wanted.items():
        if name not in there:
            raise CheckpointError(f"{path} lacks tensor {shown(name)}: {hint}")
        dtype, shape = there[name]
        if shape != tuple(tensor.shape):
            raise CheckpointError(f"{path}: tensor {shown(name)} is {list(shape)}, not {list(tensor.shape)}: {hint}")
        if dtype != tensor.dtype:
            kinds = f"{dtype_name(dtype)}, not {dtype_name(tensor.dtype)}"
            raise CheckpointError(f"{path}: tensor {shown(name)} is {kinds}: {hint}")
    surplus = next((name for name in there if name not in wanted), None)
    if surplus is not None:
        raise CheckpointError(f"{path} has tensor {shown(surplus)}, which this run has not: {hint}")
