"""First weights of a decoder that is to be trained. Knows no optimizer and no file."""

import math
import re
from zlib import crc32

import torch

from bloomery.model.decoder import Decoder

STD = 0.02
RESIDUAL = ("attn.out.weight", ".down.weight")
"""Matrices whose output is added to the residual stream."""


NORM = re.compile(r"(^|\.)norm\d?\.weight$")


def constant(name: str) -> float | None:
    """What all numbers of a parameter are at first: 1 in norms, 0 in biases; None where they are random."""
    if NORM.search(name):
        return 1.0
    return 0.0 if name.endswith("bias") else None


def deviation(name: str, num_layers: int, std: float = STD) -> float:
    """Standard deviation of a matrix's first numbers: `std`, but std / sqrt(2 * layers) in those that write to the
    residual stream, so that its variance does not grow with depth (Radford et al. 2019, section 2.3)."""
    return std / math.sqrt(2 * num_layers) if name.endswith(RESIDUAL) else std


@torch.no_grad()
def init_decoder_(decoder: Decoder, seed: int, std: float = STD) -> None:
    """Normal weights around 0 (see `deviation`), unit norms, zero biases, in place.

    A parameter's numbers depend on the seed and its name alone, not on what was made before it: another order, or only
    a part of the model, gives the same.
    """
    for name, parameter in decoder.named_parameters():
        value = constant(name)
        if value is not None:
            parameter.fill_(value)
            continue
        # A CPU generator takes 32 bits of its seed, so seed and name are mixed into as many.
        generator = torch.Generator().manual_seed(crc32(f"{seed}/{name}".encode()))
        numbers = torch.empty(parameter.shape, dtype=torch.float32)
        parameter.copy_(numbers.normal_(0, deviation(name, decoder.config.num_layers, std), generator=generator))
