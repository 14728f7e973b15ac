"""Linear layers with weights packed into 8 or 4 bits: our own kernels, for inference on a CPU. Knows no module.

Tokens are rounded to 8 bits within each call, group by group of inputs, so that products are of whole numbers
(`quant/scheme.py` has the format of the weights).
"""

import torch
from torch import Tensor

from bloomery.ops.native.calls import DTYPES, address, call

_OPS = torch.library.Library("bloomery", "FRAGMENT")
_OPS.define(
    "packed_linear(Tensor x, Tensor packed, Tensor? bias, int outputs, int inputs, int bits, int group) -> Tensor"
)


def packed_linear(
    x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int, inputs: int, bits: int, group: int
) -> Tensor:
    """x @ weight.T + bias where `runs_natively`: (..., inputs) -> (..., outputs), in x's dtype, which bias has too.

    Args:
        packed: (panels, bytes) uint8.
        bits: 8 or 4, of a weight.
        group: inputs whose tokens' numbers share a scale; with 4 bits the weights' do, too.
    """
    if torch.compiler.is_compiling():  # as in ops/linear
        return torch.ops.bloomery.packed_linear(x, packed, bias, outputs, inputs, bits, group)
    return _packed_linear(x, packed, bias, outputs, inputs, bits, group)


@torch.library.impl(_OPS, "packed_linear", "CPU")
def _packed_linear(
    x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int, inputs: int, bits: int, group: int
) -> Tensor:
    assert packed.is_contiguous(), "weights are read as they lie"
    assert bias is None or bias.dtype == x.dtype
    x = x.contiguous()
    groups = -(-inputs // group)
    tokens = x.numel() // inputs
    out = x.new_empty(*x.shape[:-1], outputs)
    room = torch.empty(tokens * groups * (group + 8), dtype=torch.uint8)  # of rounded tokens, scales and sums
    addresses = address(x), address(packed), address(bias), address(out), address(room)
    format = bits, groups, group, packed.shape[1]
    call("packed", *addresses, tokens, outputs, inputs, *format, DTYPES[x.dtype])
    return out


@torch.library.register_fake("bloomery::packed_linear", lib=_OPS)  # type: ignore[untyped-decorator]
def _packed_linear_shape(
    x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int, inputs: int, bits: int, group: int
) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)
