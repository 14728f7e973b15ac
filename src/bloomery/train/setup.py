"""What a run needs before its first step, made from its options: folder, text, model. Knows no optimizer."""

import os
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from tokenizers import Tokenizer

from bloomery.errors import CheckpointError, UsageError
from bloomery.families import FAMILIES, Family
from bloomery.log import logger
from bloomery.model.config import DecoderConfig
from bloomery.model.decoder import Decoder
from bloomery.model.init import init_decoder_
from bloomery.train.config import ModelShape, TrainConfig
from bloomery.train.data import TokenFile, find_files, read_texts, write_tokens
from bloomery.train.tokenizer import train_tokenizer


@dataclass(frozen=True)
class Text:
    """The text of a run: its files, the tokenizer learned from it, its tokens."""

    train_files: tuple[Path, ...]
    valid_files: tuple[Path, ...]
    tokenizer: Tokenizer
    train: TokenFile
    valid: TokenFile


def find_text(config: TrainConfig) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The training and the held-out files.

    Raises:
        UsageError: a pattern matches nothing, or a file is on both sides.
    """
    train, valid = find_files("data.train", config.data.train), find_files("data.valid", config.data.valid)
    both = {file.resolve() for file in train} & {file.resolve() for file in valid}
    if both:
        raise UsageError(f"data.train and data.valid both hold {min(both)}: held-out text must not be learned from")
    return train, valid


def make_folder(config: TrainConfig) -> Path:
    """The folder of the run, with its options in it.

    Raises:
        UsageError: it holds an earlier run or a model, or cannot be written.
    """
    out = Path(os.path.expanduser(config.run.out))
    if (out / "metrics.jsonl").exists():
        raise UsageError(f"run.out '{out}' holds an earlier run: choose another folder, or delete this one")
    if os.path.lexists(out / "model"):
        raise UsageError(f"run.out '{out}' holds a model already, which would be lost: choose another folder")
    try:
        (out / "tokens").mkdir(parents=True, exist_ok=True)
        fresh = out / ".recipe.toml"
        fresh.write_text(tomli_w.dumps(config.as_tables(), multiline_strings=True), encoding="utf-8")
        os.replace(fresh, out / "recipe.toml")
    except OSError as error:
        raise UsageError(f"run.out '{out}' cannot be written: {error.strerror}: choose another folder") from None
    return out


def prepare_text(config: TrainConfig, files: tuple[tuple[Path, ...], tuple[Path, ...]], folder: Path) -> Text:
    """Learn the tokenizer from the training files and write both sides' tokens into `folder`.

    Raises:
        UsageError: a file cannot be read, or the text is too small for the vocabulary.
    """
    train_files, valid_files = files
    logger.info("learning a vocabulary of %d tokens from %d files", config.model.vocab_size, len(train_files))
    tokenizer = train_tokenizer(read_texts(train_files), config.model.vocab_size)
    train = write_tokens(tokenizer, train_files, folder / "train.bin")
    valid = write_tokens(tokenizer, valid_files, folder / "valid.bin")
    logger.info("%d tokens to learn from, %d held out", train.count, valid.count)
    return Text(train_files, valid_files, tokenizer, train, valid)


def find_family(shape: ModelShape) -> Family:
    """The family by name.

    Raises:
        UsageError: there is none of that name.
    """
    family = FAMILIES.get(shape.family)
    if family is None:
        raise UsageError(f"model.family '{shape.family}' is not one of: {', '.join(FAMILIES)}")
    return family


def build_decoder(shape: ModelShape, family: Family, seed: int) -> Decoder:
    """A decoder with first weights.

    Raises:
        UsageError: the memory does not hold it, or the family needs more than sizes.
    """
    sizes = DecoderConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_heads,
        head_dim=shape.hidden_size // shape.num_heads,
        ffn_size=4 * shape.hidden_size,
        max_seq_len=shape.seq_len,
        positions="alibi",
    )
    # Written and read back in the family's words, the sizes stay and everything else becomes what the family has:
    # its kind of positions, its norms, its activation.
    try:
        config = family.to_config(family.from_config(sizes))
    except CheckpointError as error:
        raise UsageError(f"a {family.name} cannot be made from a recipe's sizes alone ({error})") from None
    try:
        decoder = Decoder(config)
    except (RuntimeError, MemoryError):
        raise UsageError(
            f"a model of hidden size {shape.hidden_size} and {shape.num_layers} layers does not fit into memory: lower"
            " model.hidden_size or model.num_layers"
        ) from None
    init_decoder_(decoder, seed)
    return decoder
