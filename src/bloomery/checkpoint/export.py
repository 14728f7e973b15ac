"""A decoder -> a Hugging Face folder, the exact inverse of `load`. Knows nothing of training."""

import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from bloomery.errors import CheckpointError, UsageError
from bloomery.families.rules import Family
from bloomery.model.decoder import Decoder


def export_decoder(
    decoder: Decoder,
    family: Family,
    target: Path,
    *,
    dtype: torch.dtype | None = None,
    config: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write config.json, generation_config.json, model.safetensors and any more text `files` as one folder.

    Args:
        dtype: that of the written weights; None keeps them as they are.
        config, generation: entries added to config.json, contents of generation_config.json.
        files: name -> text, such as a tokenizer.

    The folder appears whole or not at all: it is written beside `target` and takes its place.

    Raises:
        UsageError: `target` holds something else than a model, which would be lost.
        CheckpointError: the family has no words for this decoder, or the disk does not take it.
    """
    target = target.resolve()  # where a link points to, not the link, is replaced
    if target.exists() and not _may_be_replaced(target):
        raise UsageError(f"{target} is there and is not a model folder: choose a new or an empty folder")
    if family.to_config(family.from_config(decoder.config)) != decoder.config:
        raise CheckpointError(f"{target}: a {family.name} cannot be {decoder.config}: choose another family")
    parameters = dict(decoder.named_parameters())
    tensors = {}
    for ours, source in family.sources(decoder.config, parameters).items():
        parts = [parameters[ours].detach()]
        if source.reorder is not None:
            parts = source.reorder.to_theirs(parts[0], decoder.config)
        for theirs, part in zip(source.theirs, parts, strict=True):
            tensors[family.written(theirs)] = part.to(device="cpu", dtype=dtype).contiguous()
    written = next(iter(tensors.values())).dtype
    described = family.from_config(decoder.config) | {"dtype": str(written).removeprefix("torch.")} | dict(config or {})
    try:
        with replacing_folder(target) as folder:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            (folder / "model.safetensors").chmod(0o644)  # safetensors lets only the owner read
            write_json(folder / "config.json", described)
            if generation is not None:
                write_json(folder / "generation_config.json", generation)
            for name, text in (files or {}).items():
                (folder / name).write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target} cannot be written ({error}): choose another place or make room") from error


def _may_be_replaced(target: Path) -> bool:
    return target.is_dir() and ((target / "config.json").exists() or not any(target.iterdir()))


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place when the block ends well and vanishes when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield fresh
        fresh.chmod(0o755)
        _trade_places(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _trade_places(fresh: Path, target: Path) -> None:
    """Put `fresh` where `target` is, and what was there, if anything, where `fresh` was."""
    if not target.exists():
        fresh.rename(target)
    elif not _exchange(fresh, target):
        old = fresh.with_name(fresh.name + ".old")
        target.rename(old)
        try:
            fresh.rename(target)
        except BaseException:
            old.rename(target)
            raise
        old.rename(fresh)


def _exchange(one: Path, other: Path) -> bool:
    """Linux can swap two names in one step, so that there is no moment without a folder; not on every file system."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, TypeError):
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), swap) == 0)
