"""What happens to each number on its own: our kernels for inference on a CPU, PyTorch's elsewhere. Knows no module."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from bloomery.ops.choice import computes_natively
from bloomery.ops.native.calls import DTYPES, address, call

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
    "relu": functional.relu,
}
"""By name, PyTorch's functions; numbered in this order, from 1, in kernels.h."""
_NUMBERS = {"none": 0} | {name: number for number, name in enumerate(ACTIVATIONS, 1)}


def activate(x: Tensor, activation: str, times: Tensor | None = None) -> Tensor:
    """activation(x), times another tensor of its shape where one is given."""
    if computes_natively(x):
        return _each(x, activation, times, None)
    y = ACTIVATIONS[activation](x)
    return y if times is None else y * times


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, of one shape."""
    return _each(x, "none", None, y) if computes_natively(x) else x + y


def widened(x: Tensor) -> Tensor:
    """The same numbers in fp32."""
    if x.dtype == torch.float32:
        return x
    return _each(x, "none", None, None, wide=True) if computes_natively(x) else x.float()


def _each(x: Tensor, activation: str, times: Tensor | None, plus: Tensor | None, *, wide: bool = False) -> Tensor:
    x, times, plus = x.contiguous(), _contiguous(times), _contiguous(plus)
    out = x.new_empty(x.shape, dtype=torch.float32 if wide else x.dtype)
    addresses = address(x), address(times), address(plus), address(out)
    call("each", *addresses, x.numel(), _NUMBERS[activation], wide, DTYPES[x.dtype])
    return out


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
