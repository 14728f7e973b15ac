"""What a family is: other people's names and layouts as data, both ways. Knows no family and no file format."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from bloomery.errors import CheckpointError
from bloomery.model.config import DecoderConfig

if TYPE_CHECKING:  # a package imports without torch, and the tensors here are only named
    from torch import Tensor

Raw = Mapping[str, Any]
"""A parsed config.json."""


class Reorder(NamedTuple):
    """A rearrangement of one tensor's numbers and its inverse. Neither changes a value."""

    to_ours: Callable[[Tensor, DecoderConfig], Tensor]
    to_theirs: Callable[[Tensor, DecoderConfig], Tensor]


class Rule(NamedTuple):
    """`theirs` becomes `ours`; `{i}` stands for the layer. No `reorder`: the bytes are the same."""

    theirs: str
    ours: str
    reorder: Reorder | None = None


class Source(NamedTuple):
    """Where one of our tensors comes from."""

    theirs: str
    reorder: Reorder | None


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture as its checkpoints spell it.

    `to_config` and `from_config` translate config.json; `prefix` may or may not stand before their names;
    `ignored` are patterns of tensors that hold no weights (masks kept as buffers).
    """

    name: str
    to_config: Callable[[Raw], DecoderConfig]
    from_config: Callable[[DecoderConfig], dict[str, Any]]
    rules: tuple[Rule, ...]
    prefix: str = ""
    head: str = "lm_head.weight"
    ignored: tuple[str, ...] = ()

    def sources(self, config: DecoderConfig) -> dict[str, Source]:
        """Our tensor name -> where it comes from, for every tensor of this shape of model."""
        rows = [rule for rule in self.rules if "{i}" not in rule.theirs]
        for layer in range(config.num_layers):
            fill = str(layer)
            rows += [
                Rule(rule.theirs.replace("{i}", fill), rule.ours.replace("{i}", fill), rule.reorder)
                for rule in self.rules
                if "{i}" in rule.theirs
            ]
        if not config.tied_head:
            rows.append(Rule(self.head, "head.weight"))
        return {rule.ours: Source(rule.theirs, rule.reorder) for rule in rows}

    def is_ignored(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


def require(raw: Raw, *names: str) -> Any:
    """The first of several spellings of a size in config.json.

    Raises:
        CheckpointError: none of them is there, or it is no whole number.
    """
    for name in names:
        value = raw.get(name)
        if value is not None:
            if not isinstance(value, int):
                raise CheckpointError(f"config.json has {name} = {value!r}, which is no whole number: check it")
            return value
    raise CheckpointError(f"config.json has no '{names[0]}': the model's shape cannot be known without it")


def refuse_unless(raw: Raw, **expected: Any) -> None:
    """Refuse a variant that would load and then give wrong numbers.

    Raises:
        CheckpointError: an entry is there and has another value.
    """
    for name, value in expected.items():
        if raw.get(name, value) != value:
            raise CheckpointError(
                f"config.json has {name} = {raw[name]!r}, a variant that is not supported: only {value!r} is"
            )


ACTIVATION_NAMES = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}


def activation(raw: Raw, name: str) -> Any:
    """Our word for their activation.

    Raises:
        CheckpointError: one we do not have.
    """
    theirs = raw.get(name, "gelu_new")
    if not isinstance(theirs, str) or theirs not in ACTIVATION_NAMES:
        known = ", ".join(ACTIVATION_NAMES)
        raise CheckpointError(f"config.json has {name} = {theirs!r}, which is not one of: {known}")
    return ACTIVATION_NAMES[theirs]


def _split_fused(x: Tensor, config: DecoderConfig) -> Tensor:
    """[q|k|v, heads, head_dim] rows -> [heads, q|k|v, head_dim] rows."""
    return x.unflatten(0, (3, config.num_heads, config.head_dim)).transpose(0, 1).flatten(0, 2)


def _join_fused(x: Tensor, config: DecoderConfig) -> Tensor:
    return x.unflatten(0, (config.num_heads, 3, config.head_dim)).transpose(0, 1).flatten(0, 2)


# Conv1D keeps its matrix as [in, out]; a linear layer is [out, in].
transposed = Reorder(lambda x, _: x.T, lambda x, _: x.T)
qkv_by_head = Reorder(_split_fused, _join_fused)
qkv_by_head_transposed = Reorder(lambda x, c: _split_fused(x.T, c), lambda x, c: _join_fused(x, c).T)
