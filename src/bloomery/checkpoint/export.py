"""A decoder -> a Hugging Face folder, the exact inverse of `load`. Knows nothing of training."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import torch
from safetensors.torch import save_file

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

    The folder appears whole or not at all: it is written beside `target` and renamed into place.
    """
    parameters = dict(decoder.named_parameters())
    tensors = {}
    for ours, source in family.sources(decoder.config).items():
        tensor = parameters[ours].detach()
        if source.reorder is not None:
            tensor = source.reorder.to_theirs(tensor, decoder.config)
        name = source.theirs if source.theirs == family.head else family.prefix + source.theirs
        tensors[name] = tensor.to(device="cpu", dtype=dtype).contiguous()
    written = next(iter(tensors.values())).dtype
    described = family.from_config(decoder.config) | {"dtype": str(written).removeprefix("torch.")} | dict(config or {})
    with replacing_folder(target) as folder:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        write_json(folder / "config.json", described)
        if generation is not None:
            write_json(folder / "generation_config.json", generation)
        for name, text in (files or {}).items():
            (folder / name).write_text(text, encoding="utf-8")


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
        old = fresh.with_name(fresh.name + ".old")
        if target.exists():
            os.replace(target, old)
        os.replace(fresh, target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
