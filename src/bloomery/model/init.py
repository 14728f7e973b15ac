"""First weights of a decoder that is to be trained. Knows no optimizer and no file."""

import math
from zlib import crc32

import torch
from torch import nn

from bloomery.model.decoder import Decoder

STD = 0.02
RESIDUAL = ("attn.out.weight", ".down.weight")
"""Matrices whose output is added to the residual stream."""


@torch.no_grad()
def init_decoder_(decoder: Decoder, seed: int) -> None:
    """Normal weights of deviation 0.02, unit norms, zero biases, in place.

    Matrices that write to the residual stream get 0.02 / sqrt(2 * layers), so that its variance does not grow with
    depth (Radford et al. 2019, section 2.3). A parameter's numbers depend on the seed and its name alone, not on what
    was made before it: another order, or only a part of the model, gives the same.
    """
    norms = {id(p) for m in decoder.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm) for p in (m.weight,)}
    for name, parameter in decoder.named_parameters():
        if id(parameter) in norms:
            parameter.fill_(1)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            std = STD / math.sqrt(2 * decoder.config.num_layers) if name.endswith(RESIDUAL) else STD
            # A CPU generator takes 32 bits of its seed, so seed and name are mixed into as many.
            generator = torch.Generator().manual_seed(crc32(f"{seed}/{name}".encode()))
            numbers = torch.empty(parameter.shape, dtype=torch.float32)
            parameter.copy_(numbers.normal_(0, std, generator=generator))
