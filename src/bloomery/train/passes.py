"""Passes over a built decoder for training: dropout, recomputation, compilation. Each changes how it is computed, none
what its parameters are called. Knows no loss.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

from bloomery.model.decoder import Block, Decoder
from bloomery.ops.choice import prepare_to_compile


def add_dropout_(decoder: Decoder, part: float) -> None:
    """Drop numbers while training: after the embedding, and of what attention and feed-forward add to the residual
    stream (Radford et al. 2019 and Megatron-LM do so in the same places)."""
    if not part:
        return

    def drop(module: nn.Module, _: Any, out: Tensor) -> Tensor:
        return dropout(out, part, module.training)

    decoder.embed.register_forward_hook(drop)
    for block in cast(Iterable[Block], decoder.blocks):
        block.attn.register_forward_hook(drop)
        block.mlp.register_forward_hook(drop)


def recompute_(decoder: Decoder) -> None:
    """Keep only each block's input on the way there, and compute the block again on the way back."""
    for block in decoder.blocks:
        block.forward = partial(_recomputed, block.forward)


def _recomputed(forward: Any, *arguments: Any) -> Any:
    return checkpoint(forward, *arguments, use_reentrant=False)


def compile_(decoder: Decoder) -> None:
    """Compile every block; they are alike, so the code is made once.

    On a CPU all but its attention, which is matrix products already (`ops/causal`): code of it would be made for every
    layer and every count of bands, and after eight of them none.
    """
    prepare_to_compile()
    for block in cast(Iterable[Block], decoder.blocks):
        if decoder.device.type == "cpu":
            block.attn.forward = torch.compiler.disable(block.attn.forward)  # type: ignore[method-assign]
        block.compile()
