"""A linear layer whose weight is packed: it reads bytes and computes in fp32. Knows no file and no model."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from bloomery.ops.choice import runs_natively
from bloomery.ops.packed import packed_linear
from bloomery.quant.pack import pack, unpacked_slices
from bloomery.quant.scheme import FILLED_UP, Scheme


class QuantizedLinear(nn.Module):
    """As nn.Linear, for inference: `weight` is uint8 (ceil(N / 16), S), laid out as `quant/scheme` says.

    A new one is empty. Its bias is of the default dtype, like nn.Linear's, and is not trained either.
    """

    def __init__(
        self, inputs: int, outputs: int, bias: bool, scheme: Scheme, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.scheme = inputs, outputs, scheme
        shape = scheme.packed_shape(outputs, inputs)
        self.weight = nn.Parameter(torch.empty(shape, dtype=torch.uint8, device=device), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs, device=device), requires_grad=False) if bias else None
        self.rounds = True
        """Whether tokens may be rounded to 8 bits, as our kernels do."""

    def forward(self, x: Tensor) -> Tensor:  # (..., K) -> (..., N)
        if self.rounds and runs_natively(x):
            bits, group = self.scheme.bits, self.scheme.group or FILLED_UP
            return packed_linear(x, self.weight, self.bias, self.out_features, self.in_features, bits, group)
        return self._by_slices(x)

    def _by_slices(self, x: Tensor) -> Tensor:
        """The reference: slices of the weight unpacked, multiplied and added up in fp32, rounded to x's dtype."""
        wide = x.float()
        parts = unpacked_slices(self.weight, self.scheme, self.out_features, self.in_features)
        out = torch.cat([functional.linear(wide, part) for _, part in parts], -1)
        return (out if self.bias is None else out + self.bias.float()).to(x.dtype)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, {bias=}, scheme={self.scheme.name}"


def quantized(linear: nn.Linear, scheme: Scheme, what: str = "the weight") -> QuantizedLinear:
    """A linear layer, packed; of one on `meta`, an empty one there. It shares the bias.

    Raises:
        CheckpointError: a weight is NaN or infinite; `what` names it.
    """
    made = QuantizedLinear(linear.in_features, linear.out_features, linear.bias is not None, scheme, "meta")
    if not linear.weight.is_meta:
        made.weight = nn.Parameter(pack(linear.weight, scheme, what), requires_grad=False)
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
    return made
