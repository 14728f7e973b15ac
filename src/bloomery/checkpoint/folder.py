"""What a Hugging Face model folder says of itself: its JSON files, and which files hold its tensors.

Knows nothing of modules: `load` turns tensors into a decoder.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bloomery.errors import CheckpointError
from bloomery.families import FAMILIES, Family
from bloomery.model.config import DecoderConfig

# In order of preference: never both kinds. The index of a sharded checkpoint stands before the single file.
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


@dataclass(frozen=True)
class Folder:
    """A model folder, checked as far as its JSON goes. `weights` are the files that hold tensors."""

    path: Path
    family: Family
    config: DecoderConfig
    raw: dict[str, Any]
    generation: dict[str, Any]
    weights: tuple[Path, ...]

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a text: from generation_config.json, else config.json. Those that no token has are left out."""
        return tuple(token for token in self.raw_eos if token is not None and 0 <= token < self.config.vocab_size)

    @property
    def raw_eos(self) -> list[Any]:
        """What the folder gives as end-of-sequence ids, unchecked, as a list."""
        eos = self.generation.get("eos_token_id", self.raw.get("eos_token_id"))
        return eos if isinstance(eos, list) else [eos]

    @property
    def tokenizer(self) -> Path | None:
        file = self.path / "tokenizer.json"
        return file if file.is_file() else None


def read_folder(path: Path) -> Folder:
    """Read a folder's JSON files.

    Raises:
        CheckpointError: a file is missing or damaged, or the family is not one of ours.
    """
    raw = read_json(path / "config.json", "a model folder needs one")
    family, config = _describe(path / "config.json", raw)
    generation = path / "generation_config.json"
    folder = Folder(
        path=path,
        family=family,
        config=config,
        raw=raw,
        generation=read_json(generation) if generation.exists() else {},
        weights=_find_weights(path),
    )
    eos = folder.raw_eos
    if not all(token is None or type(token) is int for token in eos):
        raise CheckpointError(f"{path}: eos_token_id {eos} is neither a token id nor a list of them: correct the JSON")
    return folder


def _describe(file: Path, raw: dict[str, Any]) -> tuple[Family, DecoderConfig]:
    name = raw.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise CheckpointError(f"{file}: model_type {name!r} is not a family we know: take one of {', '.join(FAMILIES)}")
    try:
        return FAMILIES[name], FAMILIES[name].to_config(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None


def read_json(file: Path, why: str = "") -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist" + (f": {why}" if why else "")) from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error}): fetch it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds no JSON object: fetch it again")
    return value


def _find_weights(path: Path) -> tuple[Path, ...]:
    found = next((path / name for name in WEIGHT_FILES if (path / name).exists()), None)
    if found is None:
        raise CheckpointError(f"{path} has no weights: expected one of {', '.join(WEIGHT_FILES)}")
    if found.suffix != ".json":
        return (found,)
    names = read_json(found).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise CheckpointError(f"{found} has no weight_map: fetch it again")
    files = tuple(path / file for file in sorted(set(names.values())))
    for file in files:
        if not file.exists():
            raise CheckpointError(f"{file} is missing, but {found.name} names it: fetch the folder again")
    return files
