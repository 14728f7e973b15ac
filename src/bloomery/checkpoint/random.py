"""Models that were never trained: a shape, a seed, and numbers that follow from them. Reads no weights."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from bloomery.checkpoint.folder import Folder, Seeded, describe, read_json
from bloomery.checkpoint.header import Kind
from bloomery.checkpoint.precision import dtype_name
from bloomery.devices import memory_left
from bloomery.errors import UsageError
from bloomery.families.shapes import SHAPES
from bloomery.model.config import DecoderConfig
from bloomery.model.init import constant, deviation
from bloomery.model.layout import shapes
from bloomery.progress import as_size
from bloomery.quant.scheme import Scheme
from bloomery.quant.swap import weights
from bloomery.text.bytewise import END_ID, SMALLEST

BLOCK = 4_194_301
"""Normal numbers that all tensors are cut from, over and over. A prime: no two rows of a matrix are the same."""


class RandomTensors:
    """`KnownTensors` of a model that was never trained.

    A tensor's numbers depend on the seed and its name alone. They are of the distribution that training begins with
    (`model/init.py`), but drawn once: a tensor is a block of normal numbers, repeated from a place that its name gives.
    To draw each would take a minute for every billion.
    """

    def __init__(self, config: DecoderConfig, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> None:
        self.config, self.seed, self.dtype = config, seed, dtype
        self._shapes = {name: tuple(tensor.shape) for name, tensor in shapes(config).items()}
        self._blocks: dict[float, Tensor] = {}

    def kind(self, name: str) -> Kind:
        return Kind(self.dtype, self._shapes[name])

    def read(self, name: str) -> Tensor:
        """A new tensor, with the same numbers each time."""
        value = constant(name)
        if value is not None:
            return torch.full(self._shapes[name], value, dtype=self.dtype)
        block = self._block(deviation(name, self.config.num_layers))
        tensor = torch.empty(self._shapes[name], dtype=self.dtype)
        place, numbers = crc32(f"{self.seed}/{name}".encode()) % BLOCK, tensor.view(-1)
        done = 0
        while done < len(numbers):
            count = min(BLOCK - place, len(numbers) - done)
            numbers[done : done + count] = block[place : place + count]
            place, done = 0, done + count
        return tensor

    def release(self, name: str) -> None:
        """Nothing is kept."""

    def _block(self, std: float) -> Tensor:
        if std not in self._blocks:
            generator = torch.Generator().manual_seed(crc32(f"{self.seed}".encode()))
            numbers = torch.empty(BLOCK, dtype=torch.float32).normal_(0, std, generator=generator)
            self._blocks[std] = numbers.to(self.dtype)
        return self._blocks[std]


def random_folder(shape: str | Path, seed: int = 0, dtype: torch.dtype | None = None) -> Folder:
    """A model of a shape as if a folder held it; its weights are made when they are read.

    Args:
        shape: name of a published shape, or the path of a config.json or of a folder that has one.
        dtype: None is bfloat16.

    Raises:
        UsageError: there is no such shape.
        CheckpointError: config.json is damaged, or of a family or a variant that we do not have.
    """
    file, raw = _read_shape(shape)
    family, config = describe(file, raw)
    described = _described(raw, config, dtype or torch.bfloat16)
    return Folder(
        path=Path(shape),
        family=family,
        config=config,
        raw=described,
        generation=_generation(config),
        weights=(),
        seeded=Seeded(seed, dtype_name(dtype or torch.bfloat16)),
    )


def refuse_without_memory(folder: Folder, device: torch.device, scheme: Scheme | None = None) -> None:
    """Refuse to make weights that the device has no room for.

    Raises:
        UsageError: names both sizes.
    """
    tensors = random_tensors(folder)
    needed = sum(weight.nbytes(tensors.dtype.itemsize) for weight in weights(folder.config, scheme).values())
    left = memory_left(device)
    if left is not None and needed > left:
        kept_in = dtype_name(tensors.dtype) if scheme is None else scheme.name
        raise UsageError(
            f"{folder.path} in {kept_in} takes {as_size(needed)} of weights, and {device} has "
            f"{as_size(left)} left: choose a smaller shape, or convert it into a store and run that"
        )


def random_tensors(folder: Folder) -> RandomTensors:
    """The tensors of what `random_folder` gives."""
    if folder.seeded is None:
        raise ValueError(f"{folder.path} is not random")
    return RandomTensors(folder.config, folder.seeded.seed, getattr(torch, folder.seeded.dtype))


def _read_shape(shape: str | Path) -> tuple[Path, Mapping[str, Any]]:
    """Where a shape is described, for messages, and its config.json."""
    if str(shape) in SHAPES:
        return Path(str(shape)), SHAPES[str(shape)]
    path = Path(shape).expanduser()
    if str(shape) and path.is_dir():
        path = path / "config.json"
    if not str(shape) or not path.exists():
        near = get_close_matches(str(shape), SHAPES, 1)
        hint = f": did you mean '{near[0]}'?" if near else f" (there are: {', '.join(SHAPES)})"
        raise UsageError(f"no shape '{shape}', and no config.json of that path{hint}")
    return path, read_json(path)


def _described(raw: Mapping[str, Any], config: DecoderConfig, dtype: torch.dtype) -> dict[str, Any]:
    """config.json of a random model: the shape's own, with the special tokens of the tokenizer that goes with it."""
    kept = {name: value for name, value in raw.items() if name not in ("torch_dtype", "auto_map")}
    return kept | {"dtype": dtype_name(dtype), "bos_token_id": None, "pad_token_id": None, **_generation(config)}


def _generation(config: DecoderConfig) -> dict[str, Any]:
    return {"eos_token_id": END_ID if config.vocab_size >= SMALLEST else None}
