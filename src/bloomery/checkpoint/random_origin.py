"""A random model as the origin of a store: its tensors, and the files that go with them. Knows no disk."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bloomery.checkpoint.convert import Origin
from bloomery.checkpoint.manifest import Source
from bloomery.checkpoint.random import RandomTensors, random_folder, random_tensors
from bloomery.text.bytewise import SMALLEST, bytewise_files


def random_origin(shape: str | Path, seed: int = 0, dtype: torch.dtype | None = None) -> Origin:
    """A model of a shape as `convert` wants it: with config.json, and a tokenizer where the vocabulary is large enough.

    Raises:
        UsageError, CheckpointError: as for `random_folder`.
    """
    folder = random_folder(shape, seed, dtype)
    tensors = random_tensors(folder)
    files = {"config.json": _text(folder.raw), "generation_config.json": _text(folder.generation)}
    if folder.config.vocab_size >= SMALLEST:
        files |= bytewise_files(folder.config.vocab_size, folder.config.max_seq_len)
    return Origin(
        family=folder.family.name,
        config=folder.config,
        source=Source(name=f"random {shape}, seed {seed}"),
        tensors=tensors,
        reopen=partial(RandomTensors, tensors.config, tensors.seed, tensors.dtype),
        files={name: text.encode() for name, text in files.items()},
        identity=["random", seed, folder.raw],
    )


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"
