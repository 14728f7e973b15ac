"""Which device and dtype to run on. Knows no model."""

import torch

from bloomery.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """A device by name; `auto` takes an NVIDIA GPU where there is one.

    Raises:
        UsageError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # `meta` makes tensors, but computes nothing
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UsageError(f"device '{name}' cannot be used here ({reason}): try --device cpu") from None
    return device


def pick_dtype(name: str) -> torch.dtype | None:
    """A dtype by name; None for `auto`, which keeps the checkpoint's.

    Raises:
        UsageError: not a dtype we compute in.
    """
    if name == "auto":
        return None
    if name not in DTYPES:
        raise UsageError(f"dtype '{name}' is not one of: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def threads() -> int:
    """CPU threads that a run uses."""
    return torch.get_num_threads()
