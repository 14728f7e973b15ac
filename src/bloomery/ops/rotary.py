"""Queries and keys turned by their positions: our own kernels for inference on a CPU, PyTorch's elsewhere.

Knows no module. Letters as in `position.py`.
"""

import torch
from torch import Tensor

from bloomery.ops.choice import computes_natively
from bloomery.ops.native.calls import DTYPES, address, call


def rotary_angles(positions: Tensor, frequencies: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of (N,) int64 positions times (half,) fp32 frequencies: (N, half) fp32 each.

    Rounded to the dtype of `like`, in which others compute with them.
    """
    if computes_natively(like):
        cos, sin = (frequencies.new_empty(len(positions), len(frequencies)) for _ in range(2))
        addresses = address(positions), address(frequencies), address(cos), address(sin)
        call("angles", *addresses, *cos.shape, like.dtype == torch.bfloat16)
        return cos, sin
    turned = positions[:, None].float() * frequencies
    return turned.cos().to(like.dtype).float(), turned.sin().to(like.dtype).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first dimensions of each head by its token's angles; dimension i pairs with i + half.

    Args:
        x: (N, K, G, D), the heads of a group next to each other in memory.
        cos, sin: (N, half) fp32.

    Returns: (N, K*G, D).
    """
    if computes_natively(x):
        return _rotate(x, cos, sin)
    half = cos.shape[-1]
    x = x.flatten(1, 2)
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    tokens, groups, shared, size = x.shape
    assert x.stride(3) == 1, "the numbers of a head lie next to each other"
    assert shared == 1 or x.stride(2) == size, "the heads of a group lie next to each other"
    out = x.new_empty(tokens, groups * shared, size)
    addresses = address(x), address(cos), address(sin), address(out)
    sizes = tokens, groups * shared, shared, size, cos.shape[1]
    call("rotate", *addresses, *sizes, x.stride(0), x.stride(1), DTYPES[x.dtype])
    return out
