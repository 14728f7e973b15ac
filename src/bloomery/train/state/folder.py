"""The folder of a run: begun, gone on with, or refused. Knows no tensor.

recipe.toml     the options of its last start
tokenizer/      what text becomes tokens with
tokens/         token files, where the text came as text
metrics.jsonl   what was measured
checkpoints/    step-N folders, each readable as a model
model/          the finished model, in Hugging Face format
"""

import os
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from bloomery.checkpoint.latest import CHECKPOINTS
from bloomery.disk.lock import only_writer
from bloomery.disk.place import replacing_folder
from bloomery.disk.small import write_beside
from bloomery.errors import UsageError
from bloomery.log import logger
from bloomery.train.recipe.config import TrainConfig

FIXED = (
    "model",
    "data.train",
    "data.weights",
    "data.split",
    "data.tokenizer",
    "data.isolate_documents",
    "data.keys",
    "run.seed",
    "lora",
)
"""Options that a run cannot change on the way: it would be another one."""
RECIPE = "recipe.toml"


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """While the block runs, no other process trains in this folder.

    Raises:
        UsageError: another one does.
    """

    def refuse() -> None:
        raise UsageError(f"run.out '{out}': another process is training there: wait for it, or choose another folder")

    with only_writer(out / ".lock", refuse):
        yield


def refuse_nothing_to_measure(config: TrainConfig) -> None:
    """Random weights are not worth measuring.

    Raises:
        UsageError: there is no checkpoint, and nothing that the run begins with.
    """
    there = (config.run.out.expanduser() / CHECKPOINTS).is_dir()
    if not (there or config.begin.path or config.model.start):
        raise UsageError(f"run.out '{config.run.out}' has no checkpoint to measure: train first")


def open_folder(config: TrainConfig, *, resume: bool, record: bool = True) -> Path:
    """The folder of the run, with its options in it.

    Args:
        record: write the options down.

    Raises:
        UsageError: it holds an earlier run and is not to be gone on with, or that one is another; or it cannot be
            written.
    """
    out = config.run.out.expanduser()
    begun = [name for name in ("metrics.jsonl", "checkpoints", "model") if os.path.lexists(out / name)]
    if begun and not resume:
        raise UsageError(
            f"run.out '{out}' holds an earlier run ({begun[0]}): go on with it by --resume, or choose another folder"
        )
    if not resume and (out / RECIPE).is_file():  # left by a start that failed before its first step
        for left in ("tokenizer", "tokens"):
            shutil.rmtree(out / left, ignore_errors=True)
    tables = config.as_tables()
    if resume and (out / RECIPE).is_file():
        _compare(out / RECIPE, tables)
    elif resume:
        logger.info("%s holds no run to go on with: beginning one", out)
    try:
        (out / "tokens").mkdir(parents=True, exist_ok=True)
        if record:
            write_beside(out / RECIPE, tomli_w.dumps(tables, multiline_strings=True).encode())
    except OSError as error:
        raise UsageError(f"run.out '{out}' cannot be written: {error.strerror}: choose another folder") from None
    return out


def keep_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Files that later starts of the run take instead of making them again; all of them are there, or none.

    Raises:
        UsageError: they cannot be written, or others are there.
    """
    if folder.exists():
        if any(not (folder / name).is_file() or (folder / name).read_bytes() != raw for name, raw in files.items()):
            raise UsageError(f"{folder} is not this run's: move it away, or choose another run.out")
        return
    try:
        with replacing_folder(folder) as fresh:
            for name, content in files.items():
                (fresh / name).write_bytes(content)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}: make room") from None


def _compare(file: Path, tables: Mapping[str, Any]) -> None:
    """Say what is other than at the last start, and refuse what must not be."""
    try:
        before = dict(_flat(tomllib.loads(file.read_text(encoding="utf-8"))))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error}): the run's options are not known any more") from None
    now = dict(_flat(tables))
    for name in sorted(before.keys() | now.keys()):
        was, is_ = before.get(name), now.get(name)
        if was == is_:
            continue
        if any(name == fixed or name.startswith(f"{fixed}.") for fixed in FIXED):
            raise UsageError(
                f"{name} was {was!r} when the run began, and is {is_!r}: a run cannot change it; begin another"
            )
        logger.info("%s was %r, and is %r from here on", name, was, is_)


def _flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tables.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value
