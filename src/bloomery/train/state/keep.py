"""What a run begins with and leaves for its next start: its checkpoints, tied to its options. Knows no loop."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from bloomery.checkpoint.latest import CHECKPOINTS, named_latest, refuse_folder, step_of
from bloomery.data.samples import Samples
from bloomery.errors import CheckpointError, UsageError
from bloomery.log import logger
from bloomery.model.decoder import Decoder
from bloomery.model.layout import shapes
from bloomery.train.model import Described
from bloomery.train.optim import Optimizers
from bloomery.train.pace import Reached
from bloomery.train.recipe.config import TrainConfig
from bloomery.train.state.checkpoint import Checkpoints, Progress
from bloomery.train.state.publish import read_manifest
from bloomery.train.text import Text, Words, fingerprint

TOKENIZER = "tokenizer.json"
LAST, DATA = "last_sample", "data"
"""Words of a checkpoint, see `place_in`."""


def refuse_other_model(config: TrainConfig, described: Described, *, resume: bool) -> None:
    """Refuse to begin with what is not there, or cannot fit this run's model, before any work is done. What is damaged
    is noticed when it is loaded; a run that goes on with its own state begins with nothing else.

    Raises:
        CheckpointError: says in what the models differ.
    """
    begin = config.begin
    if begin.path is None or (resume and (config.run.out.expanduser() / CHECKPOINTS).is_dir()):
        return
    path = begin.path.expanduser()
    if not path.exists():
        raise CheckpointError(f"begin.path '{path}' is not there: name a run's folder or one of its checkpoints")
    inner = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    refuse_folder(inner)
    try:
        theirs, _ = read_manifest(named_latest(inner) or path)
    except CheckpointError:
        return
    ours = described.config
    sizes = [{name: tensor.shape for name, tensor in shapes(config).items()} for config in (theirs.config, ours)]
    fits = sizes[0] == sizes[1] and (begin.load != "all" or theirs.config == ours)
    if theirs.family != described.family.name or not fits:
        pairs = {"family": (theirs.family, described.family.name)}
        pairs |= {each.name: (getattr(theirs.config, each.name), getattr(ours, each.name)) for each in fields(ours)}
        differs = ", ".join(f"{name} {there}, not {here}" for name, (there, here) in pairs.items() if there != here)
        raise CheckpointError(f"begin.path '{path}' is of a model with {differs}: choose another, or other sizes here")


class Keeper:
    """The checkpoints of one run.

    Args:
        out: the run's folder.
        words: its tokenizer, which goes with every checkpoint.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        described: Described,
        words: Words | None,
        decoder: Decoder,
        optimizers: Optimizers,
    ) -> None:
        self.config, self.decoder, self.optimizers = config, decoder, optimizers
        self.folder = out / CHECKPOINTS
        self.files = {} if words is None else words.files
        self.checkpoints = Checkpoints(
            self.folder,
            keep=config.save.keep,
            beside=_beside(described, words),
            family=described.family,
            config=described.config,
        )

    def load(self, *, resume: bool) -> Progress:
        """Weights and moments of the run itself, of the one that the options name, or none."""
        begin = self.config.begin
        if resume and self._has_any():
            return self.checkpoints.load(None, self.decoder, self.optimizers, what="all")
        if resume and self.folder.exists():
            logger.info("%s holds no checkpoint: the run begins anew", self.folder)
        if begin.path is None:
            return Progress()
        path = begin.path.expanduser()
        self._compare_tokenizer(path)
        return self.checkpoints.load(path, self.decoder, self.optimizers, what=begin.load)

    def _has_any(self) -> bool:
        return self.folder.is_dir() and any(step_of(entry) is not None for entry in self.folder.iterdir())

    def _compare_tokenizer(self, path: Path) -> None:
        """Weights that know other tokens are of little use; moments of them of none.

        Raises:
            UsageError: they were trained with another tokenizer.
        """
        ours = self.files.get(TOKENIZER)
        theirs = next((file for file in (path / TOKENIZER, path / "tokenizer" / TOKENIZER) if file.is_file()), None)
        if ours is None or theirs is None or theirs.read_bytes() == ours:
            return
        if self.config.begin.load != "weights":
            raise UsageError(f"begin.path '{path}' has another tokenizer than this run: set data.tokenizer to {theirs}")
        logger.warning("%s has another tokenizer than this run: its embeddings are of other tokens", path)

    def save(
        self, reached: Reached, data: Mapping[str, Any], skipped: int, skipped_in_a_row: int, seconds: float
    ) -> None:
        """Begin to write a checkpoint; everything has been copied when this returns.

        Args:
            data: as `place_in` gives it.
            skipped, skipped_in_a_row, seconds: as `Progress` has them.
        """
        progress = Progress(
            step=reached.steps,
            samples=reached.samples,
            tokens=reached.tokens,
            skipped=skipped,
            skipped_in_a_row=skipped_in_a_row,
            seconds=seconds,
            extra=dict(data),
        )
        self.checkpoints.save(self.decoder, self.optimizers, progress)

    def wait(self) -> None:
        """Until the last checkpoint is there."""
        self.checkpoints.wait()


def place_in(text: Text, samples: Samples, reached: Reached) -> dict[str, Any]:
    """What a checkpoint knows of the data beside the number of samples: what it was, and the number, in a run without
    skips, of the last sample that was learned from."""
    return {DATA: fingerprint(text), LAST: samples.raw(reached.samples - 1) if reached.samples else None}


def refuse_other_data(begun: Progress, text: Text, samples: Samples) -> None:
    """The samples that a run has learned from must be those that the options give now; ranges to skip may be added
    behind them.

    Raises:
        UsageError: the run would learn from something again, or never, or from something else.
    """
    if begun.samples and begun.extra.get(DATA, fingerprint(text)) != fingerprint(text):
        raise UsageError(
            "what data.train holds is not what it held when the run began: bring the token files back, or begin "
            "another run from its weights (begin.path, begin.load = weights)"
        )
    was = begun.extra.get(LAST)
    if was is not None and begun.samples and was != samples.raw(begun.samples - 1):
        raise UsageError(
            f"data.skip has changed before sample {was}, which the run has reached: change what comes later"
        )


def _beside(described: Described, words: Words | None) -> dict[str, bytes]:
    """config.json, and the tokenizer's files."""
    entries = described.family.from_config(described.config) | described.words | (words.special if words else {})
    files = {} if words is None else dict(words.files)
    return files | {"config.json": (json.dumps(entries | {"dtype": "float32"}, indent=2) + "\n").encode()}
