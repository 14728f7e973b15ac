"""Keys and values: in blocks of a static pool for inference, nowhere for training. Knows no request and no slot."""

import math
from collections.abc import Callable
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.model.config import DecoderConfig
from bloomery.ops.attention import BLOCK, Span, attend_blocks, group_spans
from bloomery.ops.attention_native import attend_natively, plan_step
from bloomery.ops.causal import attend_causal, causal_bands, hide_other_documents
from bloomery.ops.choice import attends_natively, has_native
from bloomery.ops.kept import Kept, vector_bytes
from bloomery.ops.native.calls import thread_count
from bloomery.ops.position import AttentionRule


def kv_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What keys and values are kept in: what the model computes in; but fp32 on a CPU where our own kernel does not
    run, since attention of one bf16 query takes torch 8 times as long as an fp32 one (docs/log.md)."""
    return torch.float32 if device.type == "cpu" and not has_native(dtype, device) else dtype


class Beginning(NamedTuple):
    """Keys and values that every sequence begins with, the same for all: (L, N, K, D) each, of L layers."""

    keys: Tensor
    values: Tensor

    @property
    def length(self) -> int:
        return self.keys.shape[1]


class KVCache:
    """A pool of blocks of static shape. Which sequence owns which blocks is a table kept by the engine.

    Args:
        dtype: of keys and values as they are kept; int8 rounds each of their vectors to 8 bits.
        scratch: one more block, behind the others, which no sequence ever owns: what padding writes goes there.

    Raises:
        UsageError: there is not that much memory.
    """

    def __init__(
        self, config: DecoderConfig, blocks: int, dtype: torch.dtype, device: torch.device, *, scratch: bool = False
    ) -> None:
        shape = (config.num_layers, blocks + scratch, config.num_kv_heads, BLOCK, config.head_dim)
        self.scratch = blocks if scratch else None
        # Not zeroed: untouched pages cost no memory on a CPU, and `clear` runs before a block is used.
        try:
            self.keys = Kept.empty(shape, dtype, device)
            self.values = Kept.empty(shape, dtype, device)
        except RuntimeError:  # torch.OutOfMemoryError is one on a GPU, on a CPU it is plain
            size = 2 * math.prod(shape[:-1]) * vector_bytes(config.head_dim, dtype) / 1e9
            raise UsageError(
                f"{size:.1f} GB for keys and values of {blocks * BLOCK} positions cannot be had on {device}: "
                "lower max_batch_size or max_seq_len, or give cache_positions"
            ) from None
        if self.scratch is not None:
            self.clear([self.scratch])

    @property
    def device(self) -> torch.device:
        return self.keys.numbers.device

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values as they are kept."""
        return self.keys.numbers.dtype

    def clear(self, blocks: list[int]) -> None:
        """Zero blocks before a new owner uses them: a masked NaN left by another request would still spread."""
        if blocks:
            index = torch.tensor(blocks, device=self.device)
            for tensor in (*self.keys.tensors, *self.values.tensors):
                tensor.index_fill_(1, index, 0)

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy blocks: (from, to) each."""
        if pairs:
            source, to = torch.tensor(pairs, device=self.device).T
            for tensor in (*self.keys.tensors, *self.values.tensors):
                tensor.index_copy_(1, to, tensor[:, source])

    def begin(self, blocks: tuple[int, ...], beginning: Beginning) -> None:
        """Write a sequence's first positions, which have been computed before."""
        places = torch.tensor(_places(blocks, 0, beginning.length), device=self.device)
        self.keys.write(places, beginning.keys)
        self.values.write(places, beginning.values)


def _places(blocks: tuple[int, ...], start: int, length: int) -> list[int]:
    """Where in the pool so many positions of a sequence are kept."""
    return [blocks[position // BLOCK] * BLOCK + position % BLOCK for position in range(start, start + length)]


class CachedAttention:
    """`Attend` of one inference step: writes the new keys and values into their blocks, then attends to all.

    By our own kernel where it runs and computes what `softmax` says, else by PyTorch's.

    Args:
        softmax: what scores and softmax are computed in; None: as a fused kernel does, in fp32.
    """

    def __init__(
        self, cache: KVCache, spans: list[Span], rule: AttentionRule, softmax: torch.dtype | None = None
    ) -> None:
        self.cache = cache
        self.softmax = softmax
        places = []
        for span in spans:
            places += _places(span.blocks, span.start, span.length)
            if span.padding:
                assert cache.scratch is not None
                places += [cache.scratch * BLOCK] * span.padding
        self.places = torch.tensor(places, device=cache.device)  # (N,) where in the pool each new token is kept
        numbers = cache.keys.numbers
        self.plan = self.groups = None
        if attends_natively(numbers) and softmax in (None, torch.float32):
            self.plan = plan_step(spans, rule, numbers.shape[-3], thread_count())
        else:
            # On a CPU a call a row costs less than gathering rows that lie apart into one tensor (docs/log.md).
            self.groups = group_spans(spans, rule, cache.device, together=cache.device.type != "cpu")

    def with_room(self) -> "CachedAttention":
        """The same, for `follow`: with room for sequences twice as long. Only where our own kernel runs."""
        assert self.plan is not None
        wider = copy(self)
        wider.places, wider.plan = self.places.clone(), self.plan.with_room()
        return wider

    def follow(self, other: "CachedAttention") -> bool:
        """Become another step's of as many tokens, in the same memory; False where there is not enough of it."""
        assert self.plan is not None
        if other.plan is None or not self.plan.follow(other.plan):
            return False
        self.places.copy_(other.places)
        return True

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = self.cache.keys.layer(layer), self.cache.values.layer(layer)
        if self.plan is not None:
            return attend_natively(self.plan, self.places, query, key, value, keys, values)
        assert self.groups is not None
        keys.write(self.places, key)
        values.write(self.places, value)
        return attend_blocks(query, keys, values, self.groups, self.softmax)


class CausalAttention:
    """`Attend` of one training step: B whole sequences of T tokens, laid out one after the other; keeps nothing.

    Args:
        dropout: asked at every call for the part of the attention weights that are dropped.
    """

    def __init__(
        self,
        sequences: int,
        length: int,
        rule: AttentionRule,
        device: torch.device,
        dropout: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.shape = (sequences, length)
        self.dropout = dropout
        self.bands = causal_bands(length, rule, device)

    def within(self, segments: Tensor) -> "CausalAttention":
        """The same, where no token sees another document: (B, T) the document of each token."""
        inside = copy(self)
        inside.bands = hide_other_documents(self.bands, segments)
        return inside

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.unflatten(0, self.shape) for x in (query, key, value))
        return attend_causal(query, key, value, self.bands, self.dropout()).flatten(0, 1)
