"""What a run begins with and leaves for its next start: its checkpoints, tied to its options. Knows no loop."""

import json
from pathlib import Path

from bloomery.checkpoint.latest import CHECKPOINTS
from bloomery.data.samples import Samples
from bloomery.errors import CheckpointError, UsageError
from bloomery.log import logger
from bloomery.model.decoder import Decoder
from bloomery.train.model import Described
from bloomery.train.optim import Optimizers
from bloomery.train.pace import Reached
from bloomery.train.recipe.config import TrainConfig
from bloomery.train.state.checkpoint import Checkpoints, Progress
from bloomery.train.text import Words

LAST = "last_sample"
"""What a checkpoint knows of the place in the data beside the number of samples: ranges to skip may be added later."""


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
        if resume and self.checkpoints.newest() is not None:
            return self.checkpoints.load(None, self.decoder, self.optimizers, what="all")
        if resume and self.folder.exists():
            logger.info("%s holds no checkpoint: the run begins anew", self.folder)
        if begin.path is None:
            return Progress()
        path = begin.path.expanduser()
        if not path.exists():
            raise CheckpointError(f"begin.path '{path}' is not there: name a run's folder or one of its checkpoints")
        return self.checkpoints.load(path, self.decoder, self.optimizers, what=begin.load)

    def save(self, reached: Reached, last_sample: int, skipped: int, seconds: float) -> None:
        """Begin to write a checkpoint; everything has been copied when this returns.

        Args:
            last_sample: the number, in a run without skips, of the last sample that was learned from.
        """
        progress = Progress(
            step=reached.steps,
            samples=reached.samples,
            tokens=reached.tokens,
            skipped=skipped,
            seconds=seconds,
            extra={LAST: last_sample},
        )
        self.checkpoints.save(self.decoder, self.optimizers, progress)

    def wait(self) -> None:
        """Until the last checkpoint is there."""
        self.checkpoints.wait()


def refuse_shifted(begun: Progress, samples: Samples) -> None:
    """Ranges to skip may be added behind the place that a run has reached, but not before it.

    Raises:
        UsageError: they would have the run learn from something again, or never.
    """
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
