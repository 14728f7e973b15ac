"""Plain weights that are packed as they are read; and what may be done with weights that are packed already.

Knows no file: what a store of packed weights holds is checked by `store`.
"""

import torch
from torch import Tensor

from bloomery.checkpoint.folder import Folder
from bloomery.checkpoint.header import Kind
from bloomery.checkpoint.tensors import KnownTensors
from bloomery.errors import UsageError
from bloomery.model.config import DecoderConfig
from bloomery.quant.pack import pack
from bloomery.quant.scheme import Scheme, scheme_named
from bloomery.quant.swap import weights


class PackedTensors:
    """`KnownTensors` of a model whose linear layers are packed, from those of the plain one: whole, one at a time.

    Args:
        base: tensors of the plain model, whole.
        config: of the model.
        where: names the model in errors.
    """

    def __init__(self, base: KnownTensors, config: DecoderConfig, scheme: Scheme, where: str) -> None:
        self.base, self.where = base, where
        self.weights = weights(config, scheme)

    def read(self, name: str) -> Tensor:
        weight = self.weights[name]
        tensor = self.base.read(weight.plain)
        if weight.scheme is None:
            return tensor
        return pack(tensor, weight.scheme, f"{self.where}: tensor '{weight.plain}'")

    def release(self, name: str) -> None:
        self.base.release(self.weights[name].plain)

    def kind(self, name: str) -> Kind:
        weight = self.weights[name]
        packed = weight.scheme is not None
        return Kind(torch.uint8, weight.kept(None)) if packed else self.base.kind(weight.plain)


def scheme_of(folder: Folder) -> Scheme | None:
    """The scheme that a folder's weights are packed by; None where they are plain."""
    return None if folder.manifest is None else folder.manifest.scheme


def scheme_to_run(quant: str, folder: Folder) -> Scheme | None:
    """How a model's linear layers are kept in memory; None: as plain numbers.

    Args:
        quant: a scheme's name, or "none": as the folder has them.

    Raises:
        UsageError: there is no such scheme, or the folder's weights are packed by another.
    """
    asked, stored = scheme_named(quant), scheme_of(folder)
    if asked is not None and stored is not None and asked != stored:
        raise UsageError(
            f"quant is {asked.name}, but {folder.path} is a store in {stored.name}: leave it out, or start from the "
            f"original, {_original(folder)}"
        )
    return stored or asked


def refuse_quantized(folder: Folder, what: str) -> None:
    """Raises UsageError where a folder's weights are packed; `what` says what cannot be done with them."""
    scheme = scheme_of(folder)
    if scheme is not None:
        raise UsageError(
            f"{folder.path} is a store in {scheme.name}, whose weights have been rounded and cannot {what}: start from "
            f"the original, {_original(folder)}"
        )


def _original(folder: Folder) -> str:
    assert folder.manifest is not None
    source = folder.manifest.source
    return source.name + (f"@{source.revision}" if source.revision else "")
