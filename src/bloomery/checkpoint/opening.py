"""What a user names -> the folder or adapter that is meant, or one line that says why not. Loads no weights."""

from pathlib import Path

from bloomery.checkpoint.adapter import Adapter, read_adapter
from bloomery.checkpoint.folder import Folder, read_folder
from bloomery.checkpoint.quantized import scheme_to_run
from bloomery.checkpoint.random import random_folder, refuse_without_memory
from bloomery.devices import pick_device, pick_dtype
from bloomery.errors import UsageError
from bloomery.hub.resolve import resolve
from bloomery.quant.scheme import NONE


def adapter_for(adapter: str | Path, base: Folder, offline: bool, token: str | None) -> Adapter:
    """An adapter, by folder or name on the Hub, for a model. Raises UsageError where it is none, or leaves no text."""
    try:
        folder = resolve(adapter, None, offline, token)
    except UsageError as error:
        raise UsageError(f"adapter: {error}") from None
    found = read_adapter(folder, base)
    if found.virtual is not None and found.virtual.count > base.config.max_seq_len - 2:
        raise UsageError(
            f"{folder}: {found.virtual.count} virtual tokens leave no text in a context of {base.config.max_seq_len}: "
            "choose another adapter or model"
        )
    return found


def model_folder(model: str | Path, revision: str | None, offline: bool, token: str | None, seed: int | None) -> Folder:
    """A model, by name, folder or name on the Hub. Raises UsageError where there is none, or a seed is given."""
    if seed is not None:
        raise UsageError("seed is for the random weights of a shape: give it to SamplingParams to sample by it")
    return read_folder(resolve(model, revision, offline, token))


def shape_folder(
    shape: str | Path,
    dtype: str,
    device: str,
    seed: int | None,
    model: str | Path,
    revision: str | None,
    quant: str = NONE,
) -> Folder:
    """A model of random weights. Raises UsageError where another is named as well, or the memory is too small."""
    if model != "dickens" or revision is not None:
        raise UsageError(f"a model or its revision, and shape {str(shape)!r}, are two models: give one of them")
    folder = random_folder(shape, seed or 0, pick_dtype(dtype))
    refuse_without_memory(folder, pick_device(device), scheme_to_run(quant, folder))
    return folder
