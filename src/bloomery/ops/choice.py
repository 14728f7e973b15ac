"""Who computes: our own kernels, for inference on a CPU, or PyTorch. Knows no operation."""

import torch
from torch import Tensor

from bloomery.ops import native
from bloomery.ops.native.calls import DTYPES, KEPT_DTYPES


def has_native(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether there are kernels here for this dtype on this device."""
    return dtype in DTYPES and device.type == "cpu" and native.library() is not None


def has_native_attention(kept: torch.dtype, device: torch.device) -> bool:
    """Whether there is a kernel here that attends to keys and values kept in this dtype on this device."""
    return kept in KEPT_DTYPES and device.type == "cpu" and native.library() is not None


def runs_natively(x: Tensor) -> bool:
    """Whether what is computed from `x` now is computed by them: it has no gradients."""
    return x.dtype in DTYPES and x.device.type == "cpu" and _infers()


def attends_natively(numbers: Tensor) -> bool:
    """Whether attention to what is kept in `numbers` is computed by them now: it has no gradients."""
    return has_native_attention(numbers.dtype, numbers.device) and _infers()


def computes_natively(x: Tensor) -> bool:
    """As `runs_natively`, of what torch.compile does better itself: it makes one loop of several small operations."""
    return runs_natively(x) and not torch.compiler.is_compiling()


def _infers() -> bool:
    return torch.is_inference_mode_enabled() and native.library() is not None


def prepare_to_compile() -> None:
    """To be called before torch.compile, which cannot look into `runs_natively`: what is compiled for inference is for
    nothing else."""
    torch.compiler.assume_constant_result(_infers)
