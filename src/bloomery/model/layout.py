"""A decoder's parameters by name: their shapes. Knows no file and no rank."""

import torch
from torch import Tensor

from bloomery.model.config import DecoderConfig
from bloomery.model.decoder import Decoder


def shapes(config: DecoderConfig) -> dict[str, Tensor]:
    """Every parameter's name -> a tensor of its shape on `meta`, in the order in which a step reads them.

    A tied head has no parameter of its own.
    """
    with torch.device("meta"):
        return dict(Decoder(config).named_parameters())
