"""Tensors of a model folder -> a decoder, one tensor at a time, mapped instead of copied wherever the bytes agree.

Knows nothing of tokenizers and engines.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bloomery.checkpoint.adapter import Adapter
from bloomery.checkpoint.folder import Folder
from bloomery.checkpoint.header import Kind
from bloomery.checkpoint.huge import HugePages, aligned
from bloomery.checkpoint.merge import MergedTensors
from bloomery.checkpoint.precision import refuse_overflow
from bloomery.checkpoint.quantized import PackedTensors, scheme_of
from bloomery.checkpoint.store import open_tensors
from bloomery.checkpoint.tensors import EMBEDDING, KnownTensors
from bloomery.devices import memory_left
from bloomery.errors import UsageError
from bloomery.log import logger
from bloomery.model.decoder import Decoder
from bloomery.progress import as_size
from bloomery.quant.linear import QuantizedLinear
from bloomery.quant.scheme import Scheme
from bloomery.quant.swap import swap_linears_


def load_decoder(
    folder: Folder,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    adapter: Adapter | None = None,
    scheme: Scheme | None = None,
    *,
    huge_pages: bool = False,
) -> Decoder:
    """Build the decoder on `meta` and hand it the folder's tensors.

    A tensor whose bytes are already as we keep them (same dtype, no reordering, on a CPU) is used where it is mapped:
    its pages are shared with every other process and count only once read. Any other is copied alone, so that memory
    never holds the file beside the model. Linear layers are packed one at a time, from the numbers that the folder has.

    Args:
        dtype: of what is not packed. None keeps the checkpoint's own (fp16 becomes fp32 on a CPU, which has no fast
            fp16).
        adapter: merged into the weights that it changes.
        scheme: packs the linear layers of a plain model. Those of a store of packed weights are as they are there.
        huge_pages: copies all of them, on a CPU, into large pages instead of mapping any.

    Raises:
        CheckpointError: a tensor is missing, unknown, there twice, of another shape, too large for `dtype` or cannot
            be packed, or a file cannot be read.
        UsageError: there are no huge pages here, or there is no memory left for a copy.
    """
    device = torch.device(device)
    config = folder.config if adapter is None else adapter.config
    with torch.device("meta"):
        decoder = Decoder(config)
        stored = scheme_of(folder)
        scheme = stored or scheme
        if scheme is not None:
            swap_linears_(decoder, scheme)
    tensors: KnownTensors = open_tensors(folder)
    if dtype is None:
        kept_in = tensors.kind(EMBEDDING).dtype
        dtype = natural_dtype(kept_in, device)
        if dtype != kept_in:
            logger.info("the checkpoint is fp16, which CPUs compute slowly: running it as fp32")
    if adapter is not None:
        tensors = MergedTensors(tensors, folder, adapter, dtype if scheme is None else torch.float32)
    if scheme is not None and stored is None:
        tensors = PackedTensors(tensors, config, scheme, str(folder.path))
    _fill(decoder, tensors, dtype, device, str(folder.path), huge_pages=huge_pages)
    if scheme is not None and stored is None:
        _say(decoder, scheme)
    if config.tied_head and scheme is None:
        decoder.head.weight = decoder.embed.tokens.weight
    return decoder.to(device).eval()  # what follows from the configuration, and is no parameter, moves


def natural_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What a checkpoint kept in `dtype` runs in on a device, unless another is asked for."""
    return torch.float32 if dtype == torch.float16 and device.type == "cpu" else dtype


def _fill(
    decoder: Decoder, tensors: KnownTensors, dtype: torch.dtype, device: torch.device, where: str, *, huge_pages: bool
) -> None:
    """Hand a decoder its parameters, one after the other. where: names the model in errors."""
    kinds = {
        name: Kind(dtype if empty.is_floating_point() else empty.dtype, tuple(empty.shape))
        for name, empty in decoder.named_parameters()
    }
    pages = _huge_pages(kinds.values(), device) if huge_pages else None
    for name, (wanted, shape) in kinds.items():
        kept = tensors.read(name)
        if pages is not None:
            tensor = pages.take(shape, wanted).copy_(kept)
        else:  # one copy at most, also of a transposed view of another dtype
            tensor = kept.to(device=device, dtype=wanted, memory_format=torch.contiguous_format).contiguous()
        refuse_overflow(kept, tensor, f"{where}: tensor '{name}'")
        del kept
        _assign(decoder, name, tensor)
        tensors.release(name)
    if pages is not None:
        logger.info("weights were copied: %s", pages)


def _huge_pages(kinds: Iterable[Kind], device: torch.device) -> HugePages:
    """Room for a copy of all weights."""
    if device.type != "cpu":
        raise UsageError(f"huge_pages is for weights on a CPU, and these go to {device}: drop it")
    size = sum(aligned(math.prod(shape) * dtype.itemsize) for dtype, shape in kinds)
    left = memory_left(device)
    if left is not None and size > left:
        raise UsageError(
            f"huge_pages needs {as_size(size)} for a copy of the weights, and {as_size(left)} of memory are left: drop "
            "it, and they are read from the file as far as they are needed"
        )
    return HugePages(size)


def _say(decoder: Decoder, scheme: Scheme) -> None:
    packed = [module for module in decoder.modules() if isinstance(module, QuantizedLinear)]
    count = sum(module.in_features * module.out_features for module in packed)
    logger.info(
        "quantized %d linear layers to %s: %s for %s weights",
        len(packed),
        scheme,
        as_size(sum(module.weight.nbytes for module in packed)),
        f"{count:,}",
    )


def _assign(decoder: Decoder, name: str, tensor: Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(decoder.get_submodule(module), leaf, nn.Parameter(tensor, requires_grad=False))
