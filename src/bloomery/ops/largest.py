"""The largest of many numbers: our own kernel on a CPU, PyTorch's elsewhere. Knows no module, gives no gradients."""

import torch
from torch import Tensor

from bloomery.ops.choice import has_native
from bloomery.ops.native.calls import address, call

PART = 16384
"""Numbers that one thread looks at, as in kernels.h."""


def largest(x: Tensor) -> tuple[float, int]:
    """The largest of fp32 numbers of any shape, which is NaN where one of them is, and the first place where it stands,
    counted from the beginning of all."""
    x = x.flatten()
    if not (x.dtype == torch.float32 and x.is_contiguous() and has_native(x.dtype, x.device)):
        value, place = x.max(0)
        return float(value), int(place)
    parts = -(-len(x) // PART)
    values, places = torch.empty(parts + 1), torch.empty(parts + 1, dtype=torch.int64)
    call("largest", address(x), address(values), address(places), len(x))
    return float(values[-1]), int(places[-1])
