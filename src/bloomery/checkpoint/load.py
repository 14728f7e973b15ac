"""Tensors of a model folder -> a decoder, one tensor at a time, mapped instead of copied wherever the bytes agree.

Knows nothing of tokenizers and engines.
"""

import torch
from torch import Tensor, nn

from bloomery.checkpoint.folder import Folder
from bloomery.checkpoint.tensors import EMBEDDING, FolderTensors
from bloomery.log import logger
from bloomery.model.decoder import Decoder


def load_decoder(folder: Folder, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Decoder:
    """Build the decoder on `meta` and hand it the folder's tensors.

    A tensor whose bytes are already as we keep them (same dtype, no reordering, on a CPU) is used where it is mapped:
    its pages are shared with every other process and count only once read. Any other is copied alone, so that memory
    never holds the file beside the model.

    Args:
        dtype: None keeps the checkpoint's own (fp16 becomes fp32 on a CPU, which has no fast fp16).

    Raises:
        CheckpointError: a tensor is missing, unknown, there twice or of another shape, or a file cannot be read.
    """
    device = torch.device(device)
    with torch.device("meta"):
        decoder = Decoder(folder.config)
    parameters = dict(decoder.named_parameters())
    tensors = FolderTensors(folder, parameters)
    if dtype is None:
        dtype = _natural_dtype(tensors.read(EMBEDDING).dtype, device)
    for name in parameters:
        tensor = tensors.read(name)
        # One copy at most, also of a transposed view of another dtype.
        tensor = tensor.to(device=device, dtype=dtype, memory_format=torch.contiguous_format).contiguous()
        _assign(decoder, name, tensor)
        tensors.release(name)
    if folder.config.tied_head:
        decoder.head.weight = decoder.embed.tokens.weight
    return decoder.to(device).eval()  # what follows from the configuration, and is no parameter, moves


def _natural_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    if dtype == torch.float16 and device.type == "cpu":
        logger.info("the checkpoint is fp16, which CPUs compute slowly: running it as fp32")
        return torch.float32
    return dtype


def _assign(decoder: Decoder, name: str, tensor: Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(decoder.get_submodule(module), leaf, nn.Parameter(tensor, requires_grad=False))
