"""Model folders and stores made of random decoders of any shape. Knows nothing of how stores are read."""

from pathlib import Path
from typing import Any

import torch

from bloomery.checkpoint.convert import convert
from bloomery.checkpoint.export import export_decoder
from bloomery.checkpoint.folder import Folder, read_folder
from bloomery.checkpoint.origin import origin_of
from bloomery.checkpoint.store import open_tensors
from bloomery.families import FAMILIES
from bloomery.model.config import DecoderConfig, RotaryConfig
from bloomery.model.decoder import Decoder
from bloomery.model.layout import shapes

GROUPS = {"multi-head": 16, "two groups": 2, "multi-query": 1}
"""Heads of keys and values beside 16 of queries."""
TPS = (1, 2, 4, 8, 16)

SMALL = 6_000
"""Bytes of a file, so that a tiny model has several."""


def config_of(groups: int, vocab: int = 50) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=vocab,
        hidden_size=24,
        num_layers=2,
        num_heads=16,
        num_kv_heads=groups,
        head_dim=4,
        ffn_size=48,
        max_seq_len=64,
        positions="rotary",
        rotary=RotaryConfig(dims=4),
        norm="rms",
        activation="silu",
        gated_mlp=True,
        attn_bias=True,
        mlp_bias=True,
        tied_head=False,
    )


def write_folder(path: Path, config: DecoderConfig, family: str = "llama", **options: Any) -> Folder:
    """A Hugging Face folder of random numbers."""
    decoder = Decoder(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(generator=generator)
    export_decoder(decoder, FAMILIES[family], path, **options)
    return read_folder(path)


def make_store(folder: Folder, target: Path, **options: Any) -> Folder:
    """A store with several files."""
    convert(origin_of(folder, str(folder.path)), target, **({"file_bytes": SMALL} | options))
    return read_folder(target)


def tensors_of(folder: Folder) -> dict[str, torch.Tensor]:
    """All tensors by our names, copied."""
    opened = open_tensors(folder)
    return {name: opened.read(name).clone(memory_format=torch.contiguous_format) for name in shapes(folder.config)}


def assert_same_tensors(one: Folder, other: Folder) -> None:
    """Bit for bit, of the same dtype."""
    ours, theirs = tensors_of(one), tensors_of(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8)), name


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in sorted(folder.rglob("*")) if not file.is_dir())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
