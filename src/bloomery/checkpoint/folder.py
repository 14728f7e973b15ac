"""What a model folder says of itself: its JSON files, and which files hold its tensors.

Knows nothing of modules: `load` turns tensors into a decoder.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bloomery.checkpoint import manifest
from bloomery.checkpoint.latest import model_in, step_of
from bloomery.checkpoint.manifest import Manifest
from bloomery.disk.paths import contained, open_regular
from bloomery.errors import CheckpointError
from bloomery.families import FAMILIES, Family
from bloomery.families.words import refuse_unless
from bloomery.hub import snapshots
from bloomery.log import logger
from bloomery.model.config import DecoderConfig

# In order of preference: never both kinds. The index of a sharded checkpoint stands before the single file.
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
"""In order of preference."""
BESIDE_TOKENIZER = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""What reading one of them may read, too."""

MOST_JSON = 100_000_000
"""Bytes of a JSON file: the index of the largest model has 50,000."""


class Seeded(NamedTuple):
    """What the weights of a random model follow from, beside its configuration. `dtype` is that of all of them."""

    seed: int
    dtype: str


@dataclass(frozen=True)
class Folder:
    """A model folder, checked as far as its JSON goes. `weights` are the files that hold tensors; `weight_map` says
    which is in which, where there is an index. `manifest`: the folder is a store, in our own layout. `seeded`: there is
    no folder, weights are random, and `path` is a name.
    """

    path: Path
    family: Family
    config: DecoderConfig
    raw: dict[str, Any]
    generation: dict[str, Any]
    weights: tuple[Path, ...]
    weight_map: Mapping[str, str] = field(default_factory=dict)
    manifest: Manifest | None = None
    seeded: Seeded | None = None

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a text: from generation_config.json, else config.json. Those that no token has are left out."""
        return tuple(token for token in self.raw_eos if token is not None and 0 <= token < self.config.vocab_size)

    @property
    def raw_eos(self) -> list[Any]:
        """What the folder gives as end-of-sequence ids, unchecked, as a list."""
        return _as_list(self.generation.get("eos_token_id", self.raw.get("eos_token_id")))

    @property
    def tokenizer(self) -> Path | None:
        """The file that `text.tokenizer` reads; None where there is none.

        Raises:
            CheckpointError: it, or a file beside it that belongs to it, lies elsewhere.
        """
        return tokenizer_of(self.path) if self.seeded is None else None


def tokenizer_of(path: Path) -> Path | None:
    """The tokenizer's file in a folder; see `Folder.tokenizer`."""
    found = next((name for name in TOKENIZER_FILES if (path / name).exists()), None)
    for name in BESIDE_TOKENIZER if found else ():
        contained(path, name)
    return contained(path, found) if found else None


def read_folder(path: Path) -> Folder:
    """Read the JSON files of a Hugging Face folder or a store; of a training run, those of its latest checkpoint.

    Raises:
        CheckpointError: a file is missing, damaged or lies elsewhere, or the family is not one of ours.
    """
    path = model_in(path)
    _refuse_unfinished(path)
    if step_of(path) is not None and (path / manifest.NAME).is_file() and not (path / "config.json").exists():
        raise CheckpointError(
            f"{path} holds what was trained beside a model (LoRA), and no model: use the model it began with, and the "
            "run's adapter folder by --adapter"
        )
    raw = read_json(contained(path, "config.json"), "a model folder needs one")
    family, config = describe(path / "config.json", raw)
    generation = contained(path, "generation_config.json")
    store = _store(path, family, config)
    weights, weight_map = _find_weights(path) if store is None else (_store_weights(path, store), {})
    folder = Folder(
        path=path,
        family=family,
        config=config,
        raw=raw,
        generation=read_json(generation) if generation.exists() else {},
        weights=weights,
        weight_map=weight_map,
        manifest=store,
    )
    eos = folder.raw_eos
    if not all(token is None or type(token) is int for token in eos):
        raise CheckpointError(f"{path}: eos_token_id {eos} is neither a token id nor a list of them: correct the JSON")
    _note_foreign_code(folder)
    return folder


def _refuse_unfinished(path: Path) -> None:
    """A folder that is being fetched may have everything but what ends a text, and would run without it."""
    marker = snapshots.read_marker(path)
    left = snapshots.missing(path, snapshots.unfinished_files(path)) if marker is None or not marker.complete else []
    if left:
        raise CheckpointError(
            f"{path}: fetching it was not finished, {left[0]} is missing: run the same bloomery fetch again"
        )


def _store(path: Path, family: Family, config: DecoderConfig) -> Manifest | None:
    """The manifest of a store, which must be of the model that config.json is of."""
    file = contained(path, manifest.NAME)
    store = manifest.check_manifest(path, read_json(file)) if file.exists() else None
    if store is not None and (store.family, store.config) != (family.name, config):
        raise CheckpointError(
            f"{file} is of a {store.family} of another shape than config.json, or than it is understood now: "
            "convert the store again"
        )
    beside = ("config.json", "generation_config.json", *TOKENIZER_FILES, *BESIDE_TOKENIZER)
    unlisted = [name for name in beside if store is not None and name not in store.files and (path / name).exists()]
    if unlisted:
        raise CheckpointError(f"{path}: {unlisted[0]} is not one of the store's files: remove it, or convert again")
    return store


def _store_weights(path: Path, store: Manifest) -> tuple[Path, ...]:
    return tuple(path / name for names in store.weights for name in names)


def describe(file: Path, raw: Mapping[str, Any]) -> tuple[Family, DecoderConfig]:
    """The family and the configuration that a parsed config.json describes.

    Raises:
        CheckpointError: a family, a variant or a value that we do not have, naming `file`.
    """
    name = raw.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        asks = ", and the code that it asks for is never run" if foreign_code(raw) else ""
        raise CheckpointError(
            f"{file}: model_type {ascii(name)[:200]} is not a family we know{asks}: take one of {', '.join(FAMILIES)}"
        )
    _refuse_quantized(file, raw)
    try:
        refuse_unless(raw, is_causal=True)
        return FAMILIES[name], FAMILIES[name].to_config(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _refuse_quantized(file: Path, raw: Mapping[str, Any]) -> None:
    """Also where the weights are plain: transformers would quantize them while loading."""
    how = raw.get("quantization_config")
    if how:
        kind = how.get("quant_method") if isinstance(how, dict) else how
        raise CheckpointError(
            f"{file}: quantization_config says that the weights are quantized ({ascii(kind)[:80]}), which is not "
            "supported: take the model in fp32, fp16 or bf16"
        )


def foreign_code(raw: Mapping[str, Any]) -> list[str]:
    """The entries of a config.json that ask for code which comes with the model."""
    return [name for name in ("auto_map", "custom_pipelines", "trust_remote_code") if raw.get(name)]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _note_foreign_code(folder: Folder) -> None:
    """Many files that we read without it ask for code of their own, and other programs would run it."""
    asks = foreign_code(folder.raw)
    ours = re.split("For|LMHead", folder.family.from_config(folder.config)["architectures"][0])[0]
    theirs = folder.raw.get("architectures") or []
    if theirs and not any(isinstance(name, str) and name.startswith(ours) for name in _as_list(theirs)):
        asks.append(f"architectures {ascii(theirs)[:200]}")
    if asks:
        logger.info(
            "%s asks for code of its own (%s): none is run, it is read as a %s",
            folder.path / "config.json",
            ", ".join(asks),
            folder.family.name,
        )


def read_json(file: Path, why: str = "") -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is missing or is not a JSON object.
    """
    try:
        with open_regular(file) as opened:
            text = opened.read(MOST_JSON + 1)
        if len(text) > MOST_JSON:
            raise ValueError(f"it is larger than {MOST_JSON:,} bytes")
        value = json.loads(text.decode("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist" + (f": {why}" if why else "")) from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error}): fetch it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds no JSON object: fetch it again")
    return value


def _find_weights(path: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    """The files that hold tensors, and the index's map from tensors to files."""
    found = next((name for name in WEIGHT_FILES if (path / name).exists()), None)
    if found is None:
        raise CheckpointError(f"{path} has no weights: expected one of {', '.join(WEIGHT_FILES)}")
    first = contained(path, found)
    if first.suffix != ".json":
        return (first,), {}
    names = read_json(first).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise CheckpointError(f"{first} has no weight_map: fetch it again")
    files = tuple(contained(path, file) for file in sorted(set(names.values())))
    for file in files:
        if not file.exists():
            raise CheckpointError(f"{file} is missing, but {first.name} names it: fetch the folder again")
    return files, names
