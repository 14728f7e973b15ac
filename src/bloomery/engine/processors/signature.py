"""What a processor is. Knows none."""

from collections.abc import Callable

from torch import Tensor

Processor = Callable[[Tensor, Tensor], Tensor]
"""(history (R, T) int64, logits (R, V) fp32) -> logits (R, V), for R rows of one request.

The history is prompt and generated tokens, real ones only. Neither tensor is changed, and no row sees another.
"""
