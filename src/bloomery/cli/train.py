"""`bloomery train`: hand a resolved recipe to the trainer."""

import json

from bloomery.cli.options import TrainOptions
from bloomery.devices import set_threads
from bloomery.train.trainer import Trainer

STOPPED = 3
"""Exit code of a run that was asked to stop, and can be gone on with."""


def run(options: TrainOptions) -> int:
    """Train; or only measure, and print one JSON object a held-out set. The trainer says where the model is."""
    if options.config.run.threads is None:
        set_threads()
    trainer = Trainer(options.config, resume=options.resume, measure=options.eval_only)
    if options.eval_only:
        for name, measured in trainer.evaluate().items():
            values = {"loss": measured.loss, "perplexity": measured.perplexity, "bits_per_byte": measured.bits_per_byte}
            print(json.dumps({"set": name, "step": trainer.reached.steps, "tokens": measured.tokens, **values}))
        return 0
    return STOPPED if trainer.run().stopped is not None else 0
