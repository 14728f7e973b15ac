"""The README.md that goes with a trained model: what it is and how it came to be. Knows no tensor."""

from collections.abc import Mapping, Sequence

from bloomery.train.evaluate import Evaluation
from bloomery.train.model import Described
from bloomery.train.pace import Reached
from bloomery.train.recipe.config import TrainConfig

CARD = """\
# {title}

{description}

{began} with `bloomery train`; in Hugging Face format, so `transformers` loads it too.

| | |
|---|---|
| architecture | {family}: {layers} layers, hidden size {hidden}, {heads} heads, feed-forward {ffn} |
| parameters | {parameters:,} |
| vocabulary | {vocab:,} tokens |
| context | {context} tokens |
| training text | {train} |
| held-out text | {valid} |
| tokens seen | {seen:,} ({samples:,} sequences in {steps:,} steps) |
{held_out}
"""


def model_card(
    config: TrainConfig,
    described: Described,
    parameters: int,
    entries: tuple[Sequence[str], Sequence[str]],
    reached: Reached,
    measured: Mapping[str, Evaluation],
) -> str:
    """The card of a model; `entries`: what it learned from and what was held out."""
    decoder = described.config
    began = f"Trained from `{config.model.start}`" if config.model.start else "Trained from scratch"
    return CARD.format(
        title=config.run.out.name,
        description=config.run.description or "A small language model.",
        began=began,
        family=described.family.name,
        layers=decoder.num_layers,
        hidden=decoder.hidden_size,
        heads=decoder.num_heads,
        ffn=decoder.ffn_size,
        parameters=parameters,
        vocab=decoder.vocab_size,
        context=decoder.max_seq_len,
        train=", ".join(entries[0]),
        valid=", ".join(entries[1]) or f"part of the training text ({config.data.split})",
        seen=reached.tokens,
        steps=reached.steps,
        samples=reached.samples,
        held_out="\n".join(_row(name, one) for name, one in measured.items()),
    )


def _row(name: str, one: Evaluation) -> str:
    bits = "" if one.bits_per_byte is None else f", {one.bits_per_byte:.4f} bits per byte"
    return f"| held out: {name} | {one.loss:.4f} nats a token{bits}, over {one.tokens:,} tokens |"
