"""Virtual tokens: what stands before every text without being text. Knows no file and no engine.

Letters as in `model/`: N virtual tokens, E hidden size, K heads of keys and values, D head size; L layers.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bloomery.model.attention import Attend
from bloomery.model.cache import Beginning, CausalAttention
from bloomery.model.decoder import Decoder


class VirtualTokens(Protocol):
    """So many positions at the beginning of every sequence that no text takes."""

    @property
    def count(self) -> int:
        """N."""
        ...

    def beginning(self, decoder: Decoder) -> Beginning:
        """Their keys and values in all layers, which is all that a text ever sees of them."""
        ...


@dataclass(frozen=True, eq=False)
class PrefixTokens:
    """Prefix tuning (Li and Liang 2021): the keys and values themselves are learned."""

    keys: Tensor  # (L, N, K, D), positions already applied
    values: Tensor

    @property
    def count(self) -> int:
        return self.keys.shape[1]

    def beginning(self, decoder: Decoder) -> Beginning:
        return Beginning(self.keys.to(decoder.device), self.values.to(decoder.device))


@dataclass(frozen=True, eq=False)
class PromptTokens:
    """Prompt tuning (Lester et al. 2021): vectors in the place of token embeddings are learned.

    As they come first and attention is causal, their keys and values are the same whatever follows: they are computed
    once.
    """

    embeddings: Tensor  # (N, E)

    @property
    def count(self) -> int:
        return len(self.embeddings)

    @torch.inference_mode()
    def beginning(self, decoder: Decoder) -> Beginning:
        positions = torch.arange(self.count, device=decoder.device)
        kept = _Kept(CausalAttention(1, self.count, decoder.attention_rule, decoder.device))
        vectors = self.embeddings.to(decoder.device, decoder.dtype)
        decoder.from_vectors(decoder.embed.place(vectors, positions), positions, kept)
        return Beginning(torch.stack(kept.keys), torch.stack(kept.values))


class _Kept:
    """`Attend` that remembers the keys and values that it is given, layer by layer."""

    def __init__(self, attend: Attend) -> None:
        self.attend = attend
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.keys.append(key)
        self.values.append(value)
        return self.attend(layer, query, key, value)
