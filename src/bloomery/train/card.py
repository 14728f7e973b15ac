"""The README.md that goes with a trained model: what it is and how it came to be. Knows no tensor."""

from collections.abc import Sequence
from pathlib import Path

from bloomery.model.config import DecoderConfig
from bloomery.train.config import TrainConfig
from bloomery.train.evaluate import Evaluation

CARD = """\
# {title}

{description}

Trained from scratch with `bloomery train`; in Hugging Face format, so `transformers` loads it too.

| | |
|---|---|
| architecture | {family}: {layers} layers, hidden size {hidden}, {heads} heads, feed-forward {ffn} |
| parameters | {parameters:,} |
| vocabulary | {vocab:,} tokens, byte-level BPE, learned from the training text |
| context | {context} tokens |
| training text | {train} |
| held-out text | {valid} |
| tokens seen | {seen:,} ({steps:,} steps of {batch} sequences) |
| held-out loss | {loss:.4f} nats a token over {measured:,} tokens |
| held-out bits per byte | {bits:.4f} |
"""


def model_card(
    config: TrainConfig,
    decoder: DecoderConfig,
    parameters: int,
    files: tuple[Sequence[Path], Sequence[Path]],
    steps: int,
    measured: Evaluation,
) -> str:
    """The card of a model after `steps` steps; `files`: the training and the held-out ones."""
    train, valid = (", ".join(file.name for file in names) for names in files)
    return CARD.format(
        title=config.run.out.name,
        description=config.run.description or "A small language model.",
        family=config.model.family,
        layers=decoder.num_layers,
        hidden=decoder.hidden_size,
        heads=decoder.num_heads,
        ffn=decoder.ffn_size,
        parameters=parameters,
        vocab=decoder.vocab_size,
        context=decoder.max_seq_len,
        train=train,
        valid=valid,
        seen=steps * config.run.batch_size * config.model.seq_len,
        steps=steps,
        batch=config.run.batch_size,
        loss=measured.loss,
        measured=measured.tokens,
        bits=measured.bits_per_byte,
    )
