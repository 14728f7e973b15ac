"""A Hugging Face folder -> transformers' own model of it. Knows no request."""

from pathlib import Path
from typing import Any

import torch

from bloomery.errors import MissingExtra


def load_model(folder: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
    """The PreTrainedModel of a folder. Nothing is fetched, and no code that lies in the folder is run.

    Raises:
        MissingExtra: transformers is not installed.
    """
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise MissingExtra("transformers", "reference") from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, trust_remote_code=False
    )
    return model.to(device).eval()
