"""A model's tensors with an adapter in them. Knows no formula and no file: it is `KnownTensors` on top of others."""

import torch
from torch import Tensor

from bloomery.adapters.changes import Change
from bloomery.checkpoint.adapter import Adapter, join, split
from bloomery.checkpoint.folder import Folder
from bloomery.checkpoint.header import Kind
from bloomery.checkpoint.precision import refuse_overflow
from bloomery.checkpoint.tensors import EMBEDDING, HEAD, KnownTensors
from bloomery.model.layout import shapes


class MergedTensors:
    """`KnownTensors` of the model as an adapter makes it: by the names of `adapter.config`, which may have a head of
    its own where `base` has none.

    What the adapter leaves alone is what `base` gives, mapped or not. What it changes is computed in fp32, wherever the
    weights lie and however they are ordered there, and rounded once.

    Args:
        base: tensors of the model itself, whole.
        folder: what that model is.
        dtype: of what is changed; None: the dtype that it is kept in. A wider one loses nothing to rounding.
    """

    def __init__(self, base: KnownTensors, folder: Folder, adapter: Adapter, dtype: torch.dtype | None = None) -> None:
        self.base = base
        self.tied = folder.config.tied_head
        self.adapter = adapter
        self.dtype = dtype
        self.shapes = shapes(adapter.config)
        self.sources = folder.family.sources(adapter.config, self.shapes)

    @torch.no_grad()
    def read(self, name: str) -> Tensor:
        base = self.base.read(self._in_base(name))
        changes = self._changes(name)
        if not any(changes):
            return base
        parts = split(self.sources[name], base.float(), self.adapter.config)
        for place, steps in enumerate(changes):
            for step in steps:
                parts[place] = step.apply(parts[place])
        merged = join(self.sources[name], parts, self.adapter.config)
        rounded = merged.to(self.kind(name).dtype)
        refuse_overflow(merged, rounded, f"{self.adapter.path}: tensor '{name}', merged")
        return rounded

    def release(self, name: str) -> None:
        self.base.release(self._in_base(name))

    def kind(self, name: str) -> Kind:
        dtype = self.base.kind(self._in_base(name)).dtype
        return Kind(self.dtype or dtype if any(self._changes(name)) else dtype, tuple(self.shapes[name].shape))

    def _changes(self, name: str) -> list[tuple[Change, ...]]:
        """For each published tensor that one of ours is made of."""
        return [self.adapter.changes.get(theirs, ()) for theirs in self.sources[name].theirs]

    def _in_base(self, name: str) -> str:
        return EMBEDDING if name == HEAD and self.tied else name
