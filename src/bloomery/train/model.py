"""The decoder that a run trains, and what is known of it beside its weights. Knows no text and no optimizer."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from bloomery.checkpoint.folder import Folder, read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.checkpoint.quantized import refuse_quantized
from bloomery.checkpoint.random import random_folder
from bloomery.errors import CheckpointError, UsageError
from bloomery.families import FAMILIES, Family
from bloomery.families.shapes import SHAPES
from bloomery.hub.resolve import resolve
from bloomery.model.config import DecoderConfig
from bloomery.model.decoder import Decoder
from bloomery.model.init import init_decoder_
from bloomery.train.recipe.run_options import ModelShape

CONTEXT = 512
"""Tokens of a sequence, where nothing else says it."""


@dataclass(frozen=True)
class Described:
    """A model before it has weights. `folder`: where it was published or is; None where a recipe's sizes made it."""

    family: Family
    config: DecoderConfig
    folder: Folder | None
    seq_len: int

    @property
    def words(self) -> dict[str, Any]:
        """Entries that config.json has beyond the family's own: which tokens are special."""
        raw: Mapping[str, Any] = self.folder.raw if self.folder is not None else {}
        return {name: raw[name] for name in raw if name.endswith("_token_id")}

    @property
    def generation(self) -> dict[str, Any]:
        return dict(self.folder.generation) if self.folder is not None else {}


def describe(shape: ModelShape) -> Described:
    """The model that the recipe asks for.

    Raises:
        UsageError: no such family, shape or model; its weights are packed; or the family cannot have these sizes.
        CheckpointError: a folder is damaged.
    """
    if not (shape.start or shape.shape):
        family = FAMILIES.get(shape.family)
        if family is None:
            said = f"'{shape.family}' is not" if shape.family else "is not given: name"
            raise UsageError(f"model.family {said} one of: {', '.join(FAMILIES)}")
        seq_len = shape.seq_len or CONTEXT
        return Described(family, _from_sizes(shape, family, seq_len), None, seq_len)
    folder = read_folder(resolve(shape.start)) if shape.start else random_folder(shape.shape)
    refuse_quantized(folder, "be trained")
    _refuse_sizes(shape)
    most = folder.config.max_seq_len
    seq_len = shape.seq_len or most
    if seq_len > most and folder.config.positions == "learned":
        raise UsageError(f"model.seq_len is {seq_len}, and the model has learned positions up to {most}: lower it")
    return Described(folder.family, folder.config, folder, seq_len)


def build(described: Described, shape: ModelShape, seed: int, device: torch.device) -> Decoder:
    """The decoder in fp32, with first weights or those that are there.

    Raises:
        UsageError: the memory does not hold it.
        CheckpointError: weights are missing, or not as they should be.
    """
    try:
        if shape.start:
            assert described.folder is not None
            decoder = load_decoder(described.folder, torch.float32, device)
            for parameter in decoder.parameters():  # what is mapped is a file's, and must not be written to
                parameter.data = parameter.data.clone()
            return decoder.requires_grad_(True).train()
        decoder = Decoder(described.config)
    except (RuntimeError, MemoryError) as error:
        raise UsageError(f"a model of {described.config} does not fit into memory ({error}): make it smaller") from None
    init_decoder_(decoder, seed, shape.init_std)
    return decoder.to(device).train()


def _from_sizes(shape: ModelShape, family: Family, seq_len: int) -> DecoderConfig:
    """A published model of the family with other sizes: its kind of positions, norms, activation and biases stay."""
    published = family.to_config(next(raw for raw in SHAPES.values() if raw["model_type"] == family.name))
    head_dim, rotary = shape.hidden_size // shape.num_heads, published.rotary
    if rotary is not None:  # as large a part of a head as there, and an even one
        rotary = replace(rotary, dims=max(2, rotary.dims * head_dim // published.head_dim // 2 * 2))
    asked = replace(
        published,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads or shape.num_heads,
        head_dim=head_dim,
        ffn_size=shape.ffn_size or 4 * shape.hidden_size,
        max_seq_len=seq_len,
        rotary=rotary,
        num_experts=shape.num_experts,
        experts_per_token=(shape.experts_per_token or 2) if shape.num_experts > 1 else 1,
    )
    try:
        config = family.to_config(family.from_config(asked))
    except CheckpointError as error:
        raise UsageError(f"a {family.name} cannot be made from a recipe's sizes alone ({error})") from None
    sizes = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "ffn_size", "num_experts", "max_seq_len")
    for name in sizes:
        has, wanted = getattr(config, name), getattr(asked, name)
        if has != wanted:
            raise UsageError(f"a {family.name} of these sizes has {name} {has}, not {wanted}: leave it out")
    return replace(config, vocab_size=shape.vocab_size)


def _refuse_sizes(shape: ModelShape) -> None:
    """Sizes beside a model that has its own would be ignored."""
    plain = ModelShape()
    own = {"start", "shape", "seq_len", "dropout", "attention_dropout"} | (set() if shape.start else {"init_std"})
    for option in fields(shape):
        if option.name not in own and getattr(shape, option.name) != getattr(plain, option.name):
            which = "model.start" if shape.start else "model.shape"
            raise UsageError(f"model.{option.name} stands beside {which}, which has its own: leave one out")
