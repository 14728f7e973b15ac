"""What a family is: other people's names and layouts as data, both ways. Knows no family and no file format."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from bloomery.model.config import DecoderConfig

if TYPE_CHECKING:  # a package imports without torch, and the tensors here are only named
    from torch import Tensor

Raw = Mapping[str, Any]
"""A parsed config.json."""


class Reorder(NamedTuple):
    """A rearrangement of the numbers of one or several of their tensors into one of ours, and its inverse. Neither
    changes a value. `transposes`: their matrices are [in, out], which their shapes do not say where both are equal."""

    to_ours: Callable[[list[Tensor], DecoderConfig], Tensor]
    to_theirs: Callable[[Tensor, DecoderConfig], list[Tensor]]
    transposes: bool = False


def _always(_: DecoderConfig) -> bool:
    return True


class Rule(NamedTuple):
    """`theirs` becomes `ours`. No `reorder`: the bytes are the same.

    `{i}` stands for the layer, `{e}` for the expert; `{q,k,v}` for several tensors that become one. `when` tells
    between rules for the same tensor of ours, where their names depend on the shape.
    """

    theirs: str
    ours: str
    reorder: Reorder | None = None
    when: Callable[[DecoderConfig], bool] = _always


class Source(NamedTuple):
    """Where one of our tensors comes from: their names, without prefix, and how they become ours."""

    theirs: tuple[str, ...]
    reorder: Reorder | None


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture as its checkpoints spell it.

    `to_config` and `from_config` translate config.json; `prefix` may or may not stand before their names, but never
    before those of the head; `ignored` are patterns of tensors that hold no weights (masks and tables kept as buffers).
    """

    head: ClassVar[str] = "lm_head.weight"

    name: str
    to_config: Callable[[Raw], DecoderConfig]
    from_config: Callable[[DecoderConfig], dict[str, Any]]
    rules: tuple[Rule, ...]
    prefix: str = ""
    ignored: tuple[str, ...] = ()

    def sources(self, config: DecoderConfig, ours: Iterable[str]) -> dict[str, Source]:
        """Our tensor name -> where it comes from, for those of this shape of model.

        Args:
            ours: the names of the decoder's parameters.

        Raises:
            KeyError: no rule gives one of them.
        """
        rules = {rule.ours: rule for rule in (*self.rules, *HEAD) if rule.when(config)}
        found = {}
        for name in ours:
            numbers = dict(zip(("{i}", "{e}"), re.findall(r"(?<=\.)\d+(?=\.)", name), strict=False))
            general = name
            for letter, number in numbers.items():
                general = general.replace(f".{number}.", f".{letter}.", 1)
            rule = rules[general]
            theirs = rule.theirs
            for letter, number in numbers.items():
                theirs = theirs.replace(letter, number)
            found[name] = Source(_alternatives(theirs), rule.reorder)
        return found

    def written(self, name: str) -> str:
        """Their name with all that belongs before it."""
        return name if name in [rule.theirs for rule in HEAD] else self.prefix + name

    def is_ignored(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


HEAD = (Rule(Family.head, "head.weight"), Rule("lm_head.bias", "head.bias"))
"""The same in every family. A tied head has no tensor of its own."""


def _alternatives(name: str) -> tuple[str, ...]:
    """ "a.{q,k}.b" -> "a.q.b", "a.k.b"."""
    found = re.fullmatch(r"(.*)\{(.+)\}(.*)", name)
    if found is None:
        return (name,)
    before, choices, after = found.groups()
    return tuple(before + choice + after for choice in choices.split(","))
