"""Linear layers: our own kernels for inference on a CPU, PyTorch's everywhere else. Knows no module.

With our kernels an output's bits depend on its token and its weights alone, whatever else is computed beside it.
"""

import torch
from torch import Tensor
from torch.nn import functional

from bloomery.ops.choice import runs_natively
from bloomery.ops.native.calls import DTYPES, address, call

_OPS = torch.library.Library("bloomery", "FRAGMENT")
_OPS.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, added up in fp32: (..., K), (N, K), (N,) -> (..., N), all of one dtype."""
    if not runs_natively(x):
        return functional.linear(x, weight, bias)
    if torch.compiler.is_compiling():  # it sees one operation; calling it so costs 5 µs more
        return torch.ops.bloomery.linear(x, weight, bias)
    return _linear(x, weight, bias)


@torch.library.impl(_OPS, "linear", "CPU")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    assert weight.is_contiguous(), "weights are read as they lie"
    assert x.dtype == weight.dtype
    x = x.contiguous()
    outputs, inputs = weight.shape
    out = x.new_empty(*x.shape[:-1], outputs)
    tokens = x.numel() // inputs
    call("linear", address(x), address(weight), address(bias), address(out), tokens, outputs, inputs, DTYPES[x.dtype])
    return out


@torch.library.register_fake("bloomery::linear", lib=_OPS)  # type: ignore[untyped-decorator]
def _linear_shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))
