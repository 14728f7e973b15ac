"""`bloomery train`: hand a resolved recipe to the trainer."""

from bloomery.cli.options import TrainOptions
from bloomery.train.trainer import Trainer


def run(options: TrainOptions) -> int:
    """Train; the trainer says where the model is."""
    Trainer(options.config).run()
    return 0
