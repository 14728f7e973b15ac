"""A decoder's linear layers, each replaced by its packed one; and which parameters that leaves. Knows no file."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from bloomery.model.config import DecoderConfig
from bloomery.model.decoder import Decoder
from bloomery.model.layout import Cut
from bloomery.quant.linear import QuantizedLinear, quantized
from bloomery.quant.scheme import Scheme

EMBEDDING, HEAD = "embed.tokens.weight", "head.weight"
ROUTER = "router"
"""The last name of what is never packed: it is small, and decides which experts a token sees."""


def swap_linears_(decoder: Decoder, scheme: Scheme) -> None:
    """Pack every linear layer but routers, in place and one at a time.

    A tied head gets packed numbers of its own, and the embedding stays as it is. On `meta`, the new layers are empty
    there: `Decoder` on `meta`, swapped, is what a packed model is loaded into.

    Raises:
        CheckpointError: a weight is NaN or infinite.
    """
    for name, module in list(decoder.named_modules()):
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] != ROUTER:
            above, _, leaf = name.rpartition(".")
            setattr(decoder.get_submodule(above), leaf, quantized(module, scheme, f"tensor '{name}.weight'"))


def keep_activations_(decoder: Decoder) -> bool:
    """Have packed layers take tokens as they are; whether there is one."""
    packed = [module for module in decoder.modules() if isinstance(module, QuantizedLinear)]
    for module in packed:
        module.rounds = False
    return bool(packed)


class Weight(NamedTuple):
    """A parameter of a decoder: its shape before it is cut and packed, the scheme that packs it, and the name of the
    parameter of the plain model that has its numbers."""

    shape: tuple[int, ...]
    scheme: Scheme | None
    plain: str

    def kept(self, cut: Cut | None) -> tuple[int, ...]:
        """The shape in which a rank keeps it: cut first, then packed."""
        shape = self.shape if cut is None else cut.shape(self.shape)
        return shape if self.scheme is None else self.scheme.packed_shape(*shape)

    def nbytes(self, itemsize: int) -> int:
        """Of all of it, where numbers that are not packed take `itemsize` bytes each."""
        return math.prod(self.kept(None)) * (itemsize if self.scheme is None else 1)


def weights(config: DecoderConfig, scheme: Scheme | None) -> Mapping[str, Weight]:
    """Every parameter by name, in the order in which a step reads them. A tied head is one only where it is packed."""
    with torch.device("meta"):
        decoder = Decoder(config)
    if scheme is not None:
        swap_linears_(decoder, scheme)
    found = {}
    for name, parameter in decoder.named_parameters():
        module = decoder.get_submodule(name.rpartition(".")[0])
        if isinstance(module, QuantizedLinear) and parameter is module.weight:
            plain = EMBEDDING if name == HEAD and config.tied_head else name
            found[name] = Weight((module.out_features, module.in_features), scheme, plain)
        else:
            found[name] = Weight(tuple(parameter.shape), None, name)
    return found
