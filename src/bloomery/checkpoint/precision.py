"""Another precision for a tensor, refused where numbers would become infinite. Knows no file format."""

import torch
from torch import Tensor

from bloomery.errors import CheckpointError

PIECE = 4 * 2**20
"""Bytes that are converted, hashed and written at a time: they stay in a processor's cache from one to the next."""


def dtype_name(dtype: torch.dtype) -> str:
    """The word for a dtype on the command line and in JSON files."""
    return str(dtype).removeprefix("torch.")


def refuse_overflow(before: Tensor, after: Tensor, what: str, whole: Tensor | None = None) -> None:
    """Refuse a conversion that made finite numbers infinite.

    Args:
        before, after: the same numbers in the old and in the new dtype.
        what: names the tensor, and where it is from.
        whole: all of the tensor, where `before` is a part of it, so that all that is lost is counted.

    Raises:
        CheckpointError: names the tensor and how many of its numbers are too large.
    """
    if after.dtype == before.dtype:
        return
    narrower = torch.finfo(after.dtype).max < torch.finfo(before.dtype).max
    # One pass that allocates nothing tells that all is well; an infinity or a NaN is looked at more closely.
    if not narrower or not after.numel() or all(bool(extreme.isfinite()) for extreme in torch.aminmax(after)):
        return
    lost = sum(_lost(part, after.dtype) for part in pieces(before if whole is None else whole))
    if lost:
        wider = "float32" if after.dtype == torch.bfloat16 else "bfloat16 or float32"
        raise CheckpointError(
            f"{what}: {lost:,} numbers are too large for {dtype_name(after.dtype)}, which ends at "
            f"{torch.finfo(after.dtype).max:.6g}: take {wider}"
        )


def pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """A tensor in portions along its first dimension, of about `PIECE` bytes: in order, not copied."""
    rows = tensor if tensor.dim() else tensor.reshape(1)
    row_bytes = rows.nbytes // max(1, len(rows))
    return rows.split(max(1, PIECE // max(1, row_bytes)))


def _lost(part: Tensor, dtype: torch.dtype) -> int:
    return int((part.to(dtype).isinf() & part.isfinite()).sum())
