"""manifest.json: what a store says of itself and of its files. Knows no tensor and no family's words."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from bloomery.disk.paths import contained
from bloomery.errors import CheckpointError
from bloomery.model.config import DecoderConfig, RotaryConfig
from bloomery.quant.scheme import NONE, SCHEMES, Scheme, name_of

NAME = "manifest.json"
FORMAT, VERSION = "bloomery-store", 1
DTYPES = ("float32", "bfloat16", "float16")


class FileFacts(NamedTuple):
    """What a file of a store must be: bytes, and their hash."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a store's weights come from: a name or a path as it was given, and the commit, where that is known."""

    name: str
    revision: str | None = None
    license: str | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A store's contents.

    `dtype` is that of the token embedding; a tensor that the source kept in another has its own. `weights` are the
    names of each rank's files, in reading order; `files` has all files of the store but the manifest. `scheme` is how
    the weights of linear layers are packed; None where they are not.
    """

    family: str
    config: DecoderConfig
    dtype: str
    tp: int
    source: Source
    weights: tuple[tuple[str, ...], ...]
    files: Mapping[str, FileFacts]
    scheme: Scheme | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "bloomery": _our_version(),
            "family": self.family,
            "config": asdict(self.config),
            "dtype": self.dtype,
            "tp": self.tp,
            "quantization": {"scheme": name_of(self.scheme)},
            "source": asdict(self.source),
            "weights": [list(names) for names in self.weights],
            "files": {name: facts._asdict() for name, facts in self.files.items()},
        }


def _our_version() -> str:
    try:
        return version("bloomery")
    except PackageNotFoundError:  # run from its source
        return "unknown"


KEYS: dict[str, type] = {
    "format": str,
    "version": int,
    "bloomery": str,
    "family": str,
    "config": dict,
    "dtype": str,
    "tp": int,
    "quantization": dict,
    "source": dict,
    "weights": list,
    "files": dict,
}


def check_manifest(folder: Path, said: Mapping[str, Any]) -> Manifest | None:
    """What a folder's parsed manifest.json says; None where it is not one of a store.

    Raises:
        CheckpointError: the manifest is damaged or not of this version, or a file is missing or not of its size.
    """
    manifest = parse_manifest(folder / NAME, said, FORMAT)
    for name, facts in manifest.files.items() if manifest is not None else ():
        _check_size(contained(folder, name), facts.size)
    return manifest


def parse_manifest(file: Path, said: Mapping[str, Any], kind: str) -> Manifest | None:
    """What a parsed manifest says; None where it is not one of format `kind`. No other file is looked at.

    Raises:
        CheckpointError: it is damaged or not of this version.
    """
    if said.get("format") != kind:  # others have files of this name, too
        return None
    if type(said.get("version")) is int and said["version"] > VERSION:
        raise CheckpointError(
            f"{file} is of version {said['version']}, newer than bloomery {_our_version()} reads: update bloomery"
        )
    try:
        return _checked(said)
    except (CheckpointError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file} is damaged ({_line(error)}): convert or fetch the store again") from None


def _line(error: Exception) -> str:
    text = str(error).removesuffix(": check config.json").split("\n")[0]
    return f"it lacks {text}" if isinstance(error, KeyError) else text


def _check_size(file: Path, size: int) -> None:
    try:
        found = file.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}): convert or fetch the store again") from None
    if found != size:
        raise CheckpointError(
            f"{file} has {found:,} bytes, but the manifest says {size:,}: convert or fetch the store again"
        )


def _checked(said: Mapping[str, Any]) -> Manifest:
    _check_keys(said, KEYS, "it")
    if said["version"] != VERSION:
        raise ValueError(f"it is of version {said['version']}")
    scheme = said["quantization"].get("scheme")
    if list(said["quantization"]) != ["scheme"] or scheme not in (NONE, *SCHEMES):
        known = ", ".join([NONE, *SCHEMES])
        raise ValueError(f"its quantization is {ascii(said['quantization'])[:80]}, and we know the schemes {known}")
    if said["dtype"] not in DTYPES:
        raise ValueError(f"its dtype is {said['dtype'][:80]!r}")
    files = {name: _file_facts(name, facts) for name, facts in said["files"].items()}
    weights = said["weights"]
    names = [name for rank in weights if type(rank) is list for name in rank]
    if len(weights) != said["tp"] or not all(type(rank) is list and rank for rank in weights):
        raise ValueError(f"it has tp {said['tp']} and weights of {len(weights)} ranks")
    if not all(type(name) is str and name in files for name in names) or len(set(names)) != len(names):
        raise ValueError("its weights are not in files of its own, each once")
    return Manifest(
        family=said["family"],
        config=_config(said["config"]),
        dtype=said["dtype"],
        tp=said["tp"],
        source=_source(said["source"]),
        weights=tuple(tuple(rank) for rank in weights),
        files=files,
        scheme=SCHEMES.get(scheme),
    )


def _check_keys(said: Mapping[str, Any], known: Mapping[str, type], what: str) -> None:
    for name in said:
        if name not in known:
            raise ValueError(f"{what} has '{ascii(name)[1:-1][:80]}', which we do not know")
    for name, kind in known.items():
        if type(said[name]) is not kind:
            raise ValueError(f"{what} has {name} = {ascii(said[name])[:80]}, which is no {kind.__name__}")


def _file_facts(name: str, said: Any) -> FileFacts:
    if type(said) is not dict:
        raise ValueError(f"file {ascii(name)[:80]} is not described")
    _check_keys(said, {"size": int, "sha256": str}, f"file {ascii(name)[:80]}")
    if said["size"] < 0 or not re.fullmatch(r"[0-9a-f]{64}", said["sha256"]) or name == NAME:
        raise ValueError(f"file {ascii(name)[:80]} has an impossible size, hash or name")
    return FileFacts(**said)


def _source(said: Mapping[str, Any]) -> Source:
    unknown = set(said) - {"name", "revision", "license"}
    if unknown or type(said["name"]) is not str or any(type(v) not in (str, type(None)) for v in said.values()):
        raise ValueError("its source is not a name, a revision and a license")
    return Source(**said)


def _config(said: Mapping[str, Any]) -> DecoderConfig:
    """What fits together is checked where the configuration is made, and that it is config.json's by who reads both."""
    values = dict(said)
    for kind, given in ((DecoderConfig, values), (RotaryConfig, values.get("rotary") or {})):
        if type(given) is not dict:
            raise ValueError("its config is no table")
        unknown = set(given) - {field.name for field in fields(kind)}
        if unknown:
            raise ValueError(f"its config has '{ascii(min(unknown))[1:-1][:80]}', which we do not know")
    if values.get("rotary") is not None:
        values["rotary"] = RotaryConfig(**values["rotary"])
    return DecoderConfig(**values)
