"""LoRA as a pass over a built decoder: what is trained are two small matrices beside each that is adapted. Knows no
file, no data and no optimizer.

Letters: N tokens, r rank, P published matrices that one of ours is made of (q, k and v, where they are apart).
"""

import re
from typing import cast
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from bloomery.checkpoint.adapter import join, split
from bloomery.errors import UsageError
from bloomery.families.rules import Family, Source
from bloomery.log import logger
from bloomery.model.config import DecoderConfig
from bloomery.model.decoder import Decoder
from bloomery.model.layout import shapes
from bloomery.ops.linear import linear
from bloomery.train.recipe.lora_options import ALL, TARGETS, LoraOptions


class LowRankLinear(nn.Module):
    """A linear layer whose own numbers are frozen, plus `scale` times a product of low rank: x W' + b + s (x A') B'.

    `weight` and `bias` keep their names. Each published matrix has an A and a B of its own, as if it had been adapted
    alone: `lora_a` (P * r, in) has the A one after the other, and row i of `lora_b` (out, r) is of the B that row i of
    `weight` belongs to. So `lora_b` is cut across ranks as the rows of `weight` are, `lora_a` as its columns.

    Args:
        owners: (out, P) 1 where a row belongs to a published matrix, else 0.

    What is dropped in training is drawn from torch's own generator, for each published matrix anew.
    """

    owners: Tensor

    def __init__(self, base: nn.Linear, owners: Tensor, options: LoraOptions) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.scale, self.dropout = options.rank, options.scale, options.dropout
        # A model kept in half precision still needs room for small updates.
        dtype, device = torch.promote_types(base.weight.dtype, torch.float32), base.weight.device
        self.register_buffer("owners", owners.to(device, dtype), persistent=False)
        self.lora_a = nn.Parameter(
            torch.zeros(owners.shape[1] * self.rank, base.in_features, dtype=dtype, device=device)
        )
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, self.rank, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:  # (N, in) -> (N, out)
        out = linear(x, self.weight, self.bias)
        if not torch.is_autocast_enabled(x.device.type):  # which takes x as it is
            x = x.to(self.lora_a.dtype)
        return (out + linear(self._down(x), self._up())).to(out.dtype)

    def _down(self, x: Tensor) -> Tensor:  # (N, in) -> (N, P * r)
        if not (self.training and self.dropout):
            return linear(x, self.lora_a)
        return torch.cat([linear(dropout(x, self.dropout), part) for part in self.lora_a.split(self.rank)], -1)

    def _up(self) -> Tensor:
        """(out, P * r): every row of B in the columns of its own A, so that one product serves all."""
        return (self.scale * self.owners.unsqueeze(-1) * self.lora_b.unsqueeze(1)).flatten(1)


def add_lora_(decoder: Decoder, family: Family, options: LoraOptions, seed: int) -> None:
    """Freeze a decoder and give it an adapter that changes nothing yet: A is random, B is 0, as in peft.

    A matrix's numbers depend on the seed and its name alone. Afterwards the only parameters that want a gradient are
    those of `lora_parameters`.

    Args:
        family: whose published matrices are adapted.

    Raises:
        UsageError: the options name no rank, or a matrix that this decoder has not.
        ValueError: the decoder has an adapter already.
    """
    if not options.rank:
        raise UsageError("lora.rank is 0: give the rank of the adapter")
    if lora_parameters(decoder):
        raise ValueError("the decoder has an adapter already")
    targets = {name: _target(name) for name in shapes(decoder.config) if _target(name)}
    chosen = [name for name, target in targets.items() if options.adapts(target)]
    missing = [target for target in options.targets if target not in (*targets.values(), ALL)]
    if missing:
        there = ", ".join(dict.fromkeys(targets.values()))
        raise UsageError(f"lora.targets holds '{missing[0]}', which this {family.name} has not: it has {there}")
    decoder.requires_grad_(False)
    for name, source in family.sources(decoder.config, chosen).items():
        path = name.removesuffix(".weight")
        parent, _, leaf = path.rpartition(".")
        base = cast(nn.Linear, decoder.get_submodule(path))
        layer = LowRankLinear(base, _owners(source, base.out_features, decoder.config), options)
        _init_(layer.lora_a, f"{seed}/{path}.lora_a")
        setattr(decoder.get_submodule(parent), leaf, layer.train(decoder.training))
    trained = sum(parameter.numel() for parameter in lora_parameters(decoder).values())
    whole = sum(parameter.numel() for parameter in decoder.parameters()) - trained
    logger.info(
        "LoRA of rank %d in %d matrices: %d numbers are trained, %d frozen", options.rank, len(chosen), trained, whole
    )


def lora_parameters(decoder: Decoder) -> dict[str, nn.Parameter]:
    """All that an adapter adds to a decoder, by name: blocks.0.attn.qkv.lora_a and so on; empty where there is none."""
    return {name: parameter for name, parameter in decoder.named_parameters() if name.endswith((".lora_a", ".lora_b"))}


def lora_layers(decoder: Decoder) -> dict[str, LowRankLinear]:
    """The adapted layers by the names of their weights."""
    return {f"{path}.weight": layer for path, layer in decoder.named_modules() if isinstance(layer, LowRankLinear)}


def _target(name: str) -> str:
    """A weight's name as options have it: without its block and its expert; empty for those that are no target."""
    within = re.sub(r"^blocks\.\d+\.|(?<=\.)experts\.\d+\.|\.weight$", "", name)
    return within if within in TARGETS and name.endswith(".weight") else ""


@torch.no_grad()
def _owners(source: Source, rows: int, config: DecoderConfig) -> Tensor:
    """(out, P): which published matrix each row of ours comes from. Reorders of matrices move whole rows alone."""
    parts = [torch.full_like(part, place) for place, part in enumerate(split(source, torch.zeros(rows, 1), config))]
    return (join(source, parts, config) == torch.arange(len(parts))).float()


@torch.no_grad()
def _init_(matrix: nn.Parameter, key: str) -> None:
    """Uniform within 1 / sqrt(in), as torch and peft begin a linear layer."""
    bound = matrix.shape[1] ** -0.5
    generator = torch.Generator().manual_seed(crc32(key.encode()))
    matrix.copy_(torch.empty(matrix.shape).uniform_(-bound, bound, generator=generator))
