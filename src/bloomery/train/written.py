"""What a finished run leaves for others: the model in Hugging Face format, or the adapter, with its card."""

from collections.abc import Mapping
from pathlib import Path

from bloomery.checkpoint.export import export_decoder
from bloomery.devices import DTYPES
from bloomery.model.decoder import Decoder
from bloomery.train.card import model_card
from bloomery.train.evaluate import Evaluation
from bloomery.train.lora_folder import write_lora
from bloomery.train.model import Described
from bloomery.train.pace import Reached
from bloomery.train.recipe.config import TrainConfig
from bloomery.train.text import Text


def write_result(
    config: TrainConfig,
    out: Path,
    described: Described,
    text: Text,
    decoder: Decoder,
    reached: Reached,
    measured: Mapping[str, Evaluation],
) -> Path:
    """Write out/model, or out/adapter where only an adapter was trained; the folder.

    Raises:
        CheckpointError: a number is too large for the dtype, or the disk does not take it.
    """
    parameters = sum(p.numel() for p in decoder.parameters())
    card = model_card(config, described, parameters, text.entries, reached, measured)
    words = text.words
    files = {"README.md": card} | ({} if words is None else {name: raw.decode() for name, raw in words.files.items()})
    if config.lora.rank:
        target = out / "adapter"
        write_lora(decoder, described.family, target, config.lora, base=config.model.start, files={"README.md": card})
        return target
    target = out / "model"
    special = words.special if words is not None else {}
    generation = described.generation or {name: index for name, index in special.items() if name != "unk_token_id"}
    export_decoder(
        decoder,
        described.family,
        target,
        dtype=DTYPES[config.run.dtype],
        config=described.words | special,
        generation=generation,
        files=files,
    )
    return target
