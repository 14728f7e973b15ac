"""Norms of vectors: our own kernels for inference on a CPU, PyTorch's elsewhere. Knows no module."""

import struct

from torch import Tensor
from torch.nn import functional

from bloomery.ops.choice import computes_natively
from bloomery.ops.native.calls import DTYPES, address, call


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) × weight + bias: (..., E) -> (..., E) (Ba et al. 2016, equation 4)."""
    if computes_natively(x):
        return _norm(x, weight, bias, epsilon, centred=True)
    return functional.layer_norm(x, weight.shape, weight, bias, epsilon)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean of squares + epsilon) × weight: (..., E) -> (..., E) (Zhang and Sennrich 2019, equation 4)."""
    if computes_natively(x):
        return _norm(x, weight, None, epsilon, centred=False)
    return functional.rms_norm(x, weight.shape, weight, epsilon)


def _norm(x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, *, centred: bool) -> Tensor:
    x = x.contiguous()
    out = x.new_empty(x.shape)
    width = weight.numel()
    (as_bits,) = struct.unpack("q", struct.pack("d", epsilon))
    addresses = address(x), address(weight), address(bias), address(out)
    call("norm", *addresses, x.numel() // width, width, centred, as_bits, DTYPES[x.dtype])
    return out
