"""A folder written by peft -> an adapter that fits a model. Knows the model's names, no module and no layout of ours.

Formulas and peft's words are in `adapters/`; `merge` applies what is found here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bloomery.adapters import peft
from bloomery.adapters.changes import Change, Replaced, Rows, Scaled, same
from bloomery.adapters.virtual import VirtualTokens
from bloomery.checkpoint.files import WeightFile, open_file
from bloomery.checkpoint.folder import Folder, read_json, tokenizer_of
from bloomery.checkpoint.header import shown
from bloomery.checkpoint.quantized import refuse_quantized
from bloomery.checkpoint.tensors import EMBEDDING, WEIGHT_DTYPES
from bloomery.disk.paths import contained
from bloomery.errors import CheckpointError
from bloomery.families.rules import Family, Source
from bloomery.hub.repository import ADAPTER_WEIGHTS
from bloomery.log import logger
from bloomery.model.config import DecoderConfig
from bloomery.model.layout import shapes

PREFIX = "base_model.model."
"""peft's, before all names but those of virtual tokens."""

Changes = Mapping[str, tuple[Change, ...]]
"""Published name of a weight, without prefix -> what happens to it, in order."""


@dataclass(frozen=True)
class Adapter:
    """An adapter for one model.

    `config` is the model's as it becomes: a tied head may come apart, and the vocabulary may grow. `virtual` tokens
    stand before every text. `tokenizer` is one that came with the adapter.
    """

    path: Path
    config: DecoderConfig
    changes: Changes = field(default_factory=dict)
    virtual: VirtualTokens | None = None
    tokenizer: Path | None = None


def read_adapter(path: Path, base: Folder) -> Adapter:
    """Read an adapter's folder and check it against the model that it is for.

    Raises:
        CheckpointError: a file is missing or damaged, the adapter is of a kind or for a model that it does not fit.
    """
    refuse_quantized(base, "take an adapter")
    file = contained(path, "adapter_config.json")
    raw = read_json(file, "an adapter's folder needs one")
    try:
        kind = peft.kind_of(raw)
        weights = _weights(path)
        tensors = _read(weights)
        unknown = peft.unknown_words(raw)
        if unknown:
            logger.warning("%s sets %s, which means nothing to us: its effect is missing", file, ", ".join(unknown))
        if kind in peft.VIRTUAL_KINDS:
            virtual = peft.read_virtual(raw, tensors, base.config)
            adapter = Adapter(path, base.config, virtual=virtual, tokenizer=tokenizer_of(path))
            said = f"{virtual.count} virtual tokens before every text"
        else:
            config, changes = _fit(peft.read_changes(raw, _without_prefix(tensors)), base.family, base.config)
            adapter = Adapter(path, config, changes, tokenizer=tokenizer_of(path))
            said = f"merged into {len(changes)} tensors"
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    logger.info("adapter %s: %s, %s", path, kind, said)
    _note(raw, adapter, base)
    return adapter


def _weights(path: Path) -> WeightFile:
    found = next((name for name in ADAPTER_WEIGHTS if (path / name).exists()), None)
    if found is None:
        raise CheckpointError(f"{path} has no weights: it should have one of {', '.join(ADAPTER_WEIGHTS)}")
    return open_file(contained(path, found))


def _read(file: WeightFile) -> dict[str, Tensor]:
    if not file.names:
        raise CheckpointError(f"{file.path} holds no tensors: fetch it again")
    tensors = {}
    for name in file.names:
        if file.kind(name).dtype not in WEIGHT_DTYPES:
            dtype = str(file.kind(name).dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{file.path}: tensor {shown(name)} is {dtype}: get the adapter in fp32, fp16 or bf16"
            )
        tensors[name] = file.read(name)
        if not torch.isfinite(tensors[name]).all():
            raise CheckpointError(
                f"{file.path}: tensor {shown(name)} holds numbers that are not finite: train it again"
            )
    return tensors


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name in tensors:
        if not name.startswith(PREFIX):
            raise CheckpointError(f"tensor {shown(name)} is not named as peft names them: save it with peft")
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def _fit(found: dict[str, list[Change]], family: Family, config: DecoderConfig) -> tuple[DecoderConfig, Changes]:
    """Changes by the model's own names, and its configuration as they make it."""
    changes: dict[str, list[Change]] = {}
    for written, steps in found.items():
        name = written.removeprefix(family.prefix)
        if name in changes:
            raise CheckpointError(f"it changes {shown(name)} with and without '{family.prefix}': fetch it again")
        changes[name] = steps
    embedding = family.sources(config, [EMBEDDING])[EMBEDDING].theirs[0]
    untied = config.tied_head and _unties(changes, embedding, family.head)
    config = replace(config, tied_head=config.tied_head and not untied)
    config = _resized(config, changes, embedding, family.head)
    expected = _expected(family, config)
    fitting = {}
    for name, steps in changes.items():
        if name not in expected and name.endswith(".bias") and all(isinstance(step, Scaled) for step in steps):
            continue  # what scales a module's output scales its bias, where it has one
        if name not in expected and family.is_ignored(name):
            continue
        _check(name, steps, expected, family, config)
        fitting[name] = tuple(steps)
    return config, fitting


def _unties(changes: dict[str, list[Change]], embedding: str, head: str) -> bool:
    """Whether a tied head comes apart; completes its changes by those that it shares with the embedding."""
    both = [changes.setdefault(name, []) for name in (embedding, head)]
    for steps, others in (both, both[::-1]):
        below = [step for step in others if isinstance(step, Replaced) and step.below]
        if below and not any(isinstance(step, Replaced) for step in steps):
            steps[:0] = below
    rows = [step for step in both[0] if isinstance(step, Rows)]
    if rows and not any(isinstance(step, Rows) for step in both[1]):
        if any(not isinstance(step, Replaced) for step in both[1]):
            raise CheckpointError(f"it has vectors for single tokens and changes '{head}' otherwise: {peft.MERGE}")
        both[1] += rows
    untied = not same(*both)
    for name in (embedding, head):
        if not changes[name] or (name == head and not untied):
            del changes[name]
    return untied


def _resized(config: DecoderConfig, changes: dict[str, list[Change]], embedding: str, head: str) -> DecoderConfig:
    """With the vocabulary that the adapter was trained on, where it brings the whole embedding."""
    rows = {
        name: len(step.value)
        for name in (embedding, head)
        for step in changes.get(name, [])
        if isinstance(step, Replaced) and step.value.dim() == 2
    }
    size = rows.get(embedding, config.vocab_size)
    if not config.tied_head and size != rows.get(head, config.vocab_size):
        raise CheckpointError(
            f"its embedding has {size} rows and its head {rows.get(head, config.vocab_size)}: "
            "save both of them with the adapter"
        )
    return replace(config, vocab_size=size)


def _expected(family: Family, config: DecoderConfig) -> dict[str, Tensor]:
    """The model's own names -> tensors on `meta`, matrices as [out, in]."""
    ours = shapes(config)
    expected: dict[str, Tensor] = {}
    for name, source in family.sources(config, ours).items():
        parts = split(source, ours[name], config)
        expected |= dict(zip(source.theirs, parts, strict=True))
    return expected


def split(source: Source, tensor: Tensor, config: DecoderConfig) -> list[Tensor]:
    """One of our tensors as the published ones that it is made of, matrices as [out, in]."""
    if source.reorder is None:
        return [tensor]
    parts = source.reorder.to_theirs(tensor, config)
    return [part.T if source.reorder.transposes and part.dim() == 2 else part for part in parts]


def join(source: Source, parts: list[Tensor], config: DecoderConfig) -> Tensor:
    """The inverse of `split`."""
    if source.reorder is None:
        return parts[0]
    parts = [part.T if source.reorder.transposes and part.dim() == 2 else part for part in parts]
    return source.reorder.to_ours(parts, config)


def _check(
    name: str, steps: list[Change], expected: Mapping[str, Tensor], family: Family, config: DecoderConfig
) -> None:
    if name not in expected:
        raise CheckpointError(
            f"it changes {shown(name)}, which a {family.name} of {config.num_layers} layers does not have: "
            "give the model that it was trained on"
        )
    shape = tuple(expected[name].shape)
    if not all(step.fits(shape) for step in steps):
        raise CheckpointError(
            f"what it does to '{name}' does not fit {list(shape)} numbers: give the model that it was trained on"
        )


def _note(raw: Mapping[str, Any], adapter: Adapter, base: Folder) -> None:
    """Say what a user might not expect."""
    if base.config.tied_head and not adapter.config.tied_head:
        logger.info("the adapter takes embedding and head, which were one, apart: both are kept")
    if adapter.config.vocab_size != base.config.vocab_size:
        logger.info(
            "the adapter has a vocabulary of %d instead of %d", adapter.config.vocab_size, base.config.vocab_size
        )
    if adapter.tokenizer is not None:
        logger.info("text is read with the adapter's own %s", adapter.tokenizer.name)
    trained_on = raw.get("base_model_name_or_path")
    name = trained_on.rstrip("/").rpartition("/")[2] if isinstance(trained_on, str) else ""
    if name and name.lower() not in str(base.path).lower():
        logger.info("the adapter was trained on %s: make sure that %s is the same model", ascii(trained_on), base.path)
