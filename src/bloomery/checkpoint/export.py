"""Our tensors -> a Hugging Face folder, one at a time: the exact inverse of reading one. Knows no training."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bloomery.checkpoint.adapter import Adapter
from bloomery.checkpoint.folder import BESIDE_TOKENIZER, TOKENIZER_FILES, Folder
from bloomery.checkpoint.header import Kind
from bloomery.checkpoint.merge import MergedTensors
from bloomery.checkpoint.origin import beside_weights
from bloomery.checkpoint.precision import dtype_name
from bloomery.checkpoint.quantized import refuse_quantized
from bloomery.checkpoint.replace import refuse_others
from bloomery.checkpoint.store import open_tensors
from bloomery.checkpoint.tensors import KnownTensors
from bloomery.checkpoint.write import FileWriter, lay_out, write_bytes, write_json
from bloomery.disk.paths import contained
from bloomery.disk.place import refuse_without_room, replacing_folder, sync_folder
from bloomery.errors import CheckpointError, UsageError
from bloomery.families.rules import Family
from bloomery.model.config import DecoderConfig
from bloomery.model.decoder import Decoder
from bloomery.model.layout import shapes

SHARD_BYTES = 5_000_000_000
"""Where a new file begins, as in Hugging Face's own folders."""

WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
"""Weights of a folder that an exported one may replace."""

Moved = Callable[[int], None]


class Exported(NamedTuple):
    """The written weights."""

    files: tuple[str, ...]
    size: int


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
    """Write config.json, generation_config.json, weights and any more text `files` as one folder.

    Args:
        dtype: that of the written weights; None keeps them as they are.
        config, generation: entries added to config.json, contents of generation_config.json.
        files: name -> text, such as a tokenizer.

    The folder appears whole or not at all: it is written beside `target` and takes its place.

    Raises:
        UsageError: `target` holds something else than a model, which would be lost.
        CheckpointError: the family has no words for this decoder, a number is too large for `dtype`, or the disk does
            not take it.
    """
    if family.to_config(family.from_config(decoder.config)) != decoder.config:
        raise CheckpointError(f"{target}: a {family.name} cannot be {decoder.config}: choose another family")
    tensors = _DecoderTensors(decoder, dtype)
    described = family.from_config(decoder.config) | {"dtype": dtype_name(tensors.dtype)} | dict(config or {})
    more = {"config.json": _as_json(described)}
    if generation is not None:
        more["generation_config.json"] = _as_json(generation)
    more |= {name: text.encode() for name, text in (files or {}).items()}
    _Export(tensors, family, decoder.config, "the model", SHARD_BYTES).write(target, more, lambda count: None)


def export_folder(
    folder: Folder,
    target: Path,
    *,
    adapter: Adapter | None = None,
    shard_bytes: int = SHARD_BYTES,
    begun: Callable[[int, int], None] = lambda total, kept: None,
    moved: Moved = lambda count: None,
) -> Exported:
    """Write a Hugging Face folder from another, or from a store: what that was made from, bit for bit.

    Tensors that hold no weights, and second copies of a tied head, are left out. The configuration and the files beside
    the weights stay as they are; only where a store was given another dtype, config.json says so.

    Args:
        adapter: merged into the weights that it changes; its own tokenizer, if any, is written in place of the model's.
        begun: is told the bytes of all weights, and that none are written.
        moved: is told how many bytes have been written since it was last told.

    Raises:
        UsageError: `target` holds something else than a model, which would be lost, the adapter is no change of
            weights, or the weights are packed.
        CheckpointError: a tensor cannot be read, or the disk does not take it.
    """
    if adapter is not None and adapter.virtual is not None:
        raise UsageError(f"{adapter.path} has tokens that stand before every text: no weights can hold them")
    refuse_quantized(folder, "be exported")
    tensors: KnownTensors = open_tensors(folder)
    config = folder.config
    beside = {name: file.read_bytes() for name, file in beside_weights(folder.path).items()}
    if folder.manifest is not None:
        beside["config.json"] = _with_dtype(folder.raw, beside["config.json"], folder.manifest.dtype)
    if adapter is not None:
        tensors, config = MergedTensors(tensors, folder, adapter), adapter.config
        beside = _adapted(beside, folder, adapter)
    work = _Export(tensors, folder.family, config, str(folder.path), shard_bytes)
    begun(work.size, 0)
    return work.write(target, beside, moved)


def _adapted(beside: dict[str, bytes], folder: Folder, adapter: Adapter) -> dict[str, bytes]:
    """The files beside the weights: config.json as the adapter makes it, and its tokenizer where it has one."""
    before, after = (folder.family.from_config(config) for config in (folder.config, adapter.config))
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    if changed:
        beside = beside | {"config.json": _as_json(json.loads(beside["config.json"]) | changed)}
    if adapter.tokenizer is None:
        return beside
    theirs = (*TOKENIZER_FILES, *BESIDE_TOKENIZER)
    kept = {name: content for name, content in beside.items() if name not in theirs}
    found = {name: contained(adapter.path, name) for name in theirs if (adapter.path / name).exists()}
    return kept | {name: file.read_bytes() for name, file in found.items()}


def _with_dtype(raw: Mapping[str, Any], text: bytes, dtype: str) -> bytes:
    """A config.json that does not claim another dtype than the weights have: whoever reads it would convert them."""
    other = {key: dtype for key in ("dtype", "torch_dtype") if raw.get(key) not in (None, dtype, f"torch.{dtype}")}
    return _as_json(dict(raw) | other) if other else text


def _as_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


class _DecoderTensors:
    """`KnownTensors` of a decoder in memory."""

    def __init__(self, decoder: Decoder, dtype: torch.dtype | None) -> None:
        self.parameters = dict(decoder.named_parameters())
        self.dtype = dtype or decoder.dtype
        self.kept = dtype is None

    def read(self, name: str) -> Tensor:
        return self.parameters[name].detach()

    def release(self, name: str) -> None:
        """Memory stays the decoder's."""

    def kind(self, name: str) -> Kind:
        tensor = self.parameters[name]
        return Kind(tensor.dtype if self.kept else self.dtype, tuple(tensor.shape))


class _Part(NamedTuple):
    """One of our tensors, and what it is written as: their full names, dtypes and shapes."""

    ours: str
    theirs: dict[str, Kind]

    @property
    def size(self) -> int:
        return sum(torch.Size(kind.shape).numel() * kind.dtype.itemsize for kind in self.theirs.values())


class _Export:
    """One folder on its way. `what` names the tensors' origin in errors."""

    def __init__(
        self, tensors: KnownTensors, family: Family, config: DecoderConfig, what: str, shard_bytes: int
    ) -> None:
        self.tensors, self.config, self.what = tensors, config, what
        parameters = shapes(config)
        self.sources = family.sources(config, parameters)
        parts = []
        for ours, source in self.sources.items():
            metas = [parameters[ours]]
            if source.reorder is not None:
                metas = source.reorder.to_theirs(parameters[ours], config)
            names = [family.written(theirs) for theirs in source.theirs]
            dtype = tensors.kind(ours).dtype
            parts.append(_Part(ours, {n: Kind(dtype, tuple(m.shape)) for n, m in zip(names, metas, strict=True)}))
        self.shards = _shards(parts, shard_bytes)
        self.size = sum(part.size for part in parts)

    def write(self, target: Path, beside: Mapping[str, bytes], moved: Moved) -> Exported:
        target = target.resolve()  # where a link points to, not the link, is replaced
        refuse_others(target, "model", WEIGHTS, ("config.json", b'"model_type"'))
        try:
            with replacing_folder(target) as folder:
                refuse_without_room(folder, self.size)
                names = self._write_weights(folder, moved)
                for name, content in beside.items():
                    write_bytes(folder / name, content)
                sync_folder(folder)
            sync_folder(target.parent)
        except OSError as error:
            raise CheckpointError(f"{target} cannot be written ({error}): choose another place or make room") from error
        return Exported(names, self.size)

    def _write_weights(self, folder: Path, moved: Moved) -> tuple[str, ...]:
        count = len(self.shards)
        names = tuple(f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1))
        if count == 1:
            names = ("model.safetensors",)
        for name, shard in zip(names, self.shards, strict=True):
            self._write_file(folder / name, shard, moved)
        if count > 1:
            places = {theirs: name for name, shard in zip(names, self.shards, strict=True) for theirs in _names(shard)}
            index = {"metadata": {"total_size": self.size}, "weight_map": places}
            write_json(folder / "model.safetensors.index.json", index)
        return names

    def _write_file(self, path: Path, shard: list[_Part], moved: Moved) -> None:
        layout = lay_out((name, kind) for part in shard for name, kind in part.theirs.items())
        with FileWriter(path, layout, None) as writer:
            for part in shard:
                tensors = [self.tensors.read(part.ours)]
                reorder = self.sources[part.ours].reorder
                if reorder is not None:
                    tensors = reorder.to_theirs(tensors[0], self.config)
                for name, tensor in zip(part.theirs, tensors, strict=True):
                    writer.write(name, tensor, f"{self.what}: tensor '{name}'")
                del tensors, tensor
                self.tensors.release(part.ours)
                moved(part.size)
            writer.finish()


def _shards(parts: list[_Part], shard_bytes: int) -> list[list[_Part]]:
    """The tensors of each file. In a file those of wider dtypes come first, so that each lies at a multiple of its
    numbers' size, as the format's own library has it.
    """
    shards: list[list[_Part]] = [[]]
    size = 0
    for part in parts:
        if shards[-1] and size + part.size > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(part)
        size += part.size
    return [sorted(shard, key=_narrowness) for shard in shards]


def _narrowness(part: _Part) -> int:
    return -next(iter(part.theirs.values())).dtype.itemsize


def _names(shard: list[_Part]) -> list[str]:
    return [name for part in shard for name in part.theirs]
