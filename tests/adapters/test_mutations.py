"""Parity with peft can fail: each mistake that is easy to make with an adapter, made on purpose, turns it red."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapted import Adapted, kind
from bloomery import LLM
from bloomery.adapters import changes, peft, virtual
from bloomery.checkpoint import adapter, merge
from bloomery.engine import scheduler
from bloomery.families.rules import Source
from bloomery.model import cache, decoder
from drive import assert_parity
from tiny import Tiny

Patch = pytest.MonkeyPatch
Mistake = Callable[[Patch], None]


def check(adapted: Adapted) -> None:
    ids = adapted.tiny.prompt(75)
    assert_parity(LLM(adapted.tiny.path, adapter=adapted.path, dtype="float32").logits(ids), adapted.logits(ids))


def change_of_low_rank(**wrong: object) -> Mistake:
    def apply(patch: Patch) -> None:
        right = changes.LowRank.apply
        patch.setattr(changes.LowRank, "apply", lambda self, weight: right(replace(self, **wrong), weight))

    return apply


def rank_not_rooted(patch: Patch) -> None:
    def low_rank(up: Tensor, down: Tensor, scale: float, *more: object) -> changes.LowRank:
        return changes.LowRank(up, down, scale / math.sqrt(len(down)), *more)  # type: ignore[arg-type]

    patch.setattr(peft, "LowRank", low_rank)


def patterns_not_read(patch: Patch) -> None:
    patch.setattr(peft, "_alpha", lambda raw, module: raw["lora_alpha"])


def square_matrices_not_turned(patch: Patch) -> None:
    """Of those whose shapes betray nothing."""

    def turned_back(parts: list[Tensor], source: Source) -> list[Tensor]:
        back = source.reorder is not None and source.reorder.transposes
        return [x.T if back and x.dim() == 2 and x.shape[0] == x.shape[1] else x for x in parts]

    split, join = merge.split, merge.join
    patch.setattr(merge, "split", lambda source, x, config: turned_back(split(source, x, config), source))
    patch.setattr(merge, "join", lambda source, parts, config: join(source, turned_back(parts, source), config))


def lengths_of_the_wrong_axis(patch: Patch) -> None:
    norm = torch.linalg.vector_norm

    def other(x: Tensor, dim: int) -> Tensor:
        return norm(x, dim=dim) if x.shape[0] != x.shape[1] else norm(x, dim=1 - dim)

    patch.setattr(torch.linalg, "vector_norm", other)


def lengths_before_the_addition(patch: Patch) -> None:
    def apply(self: changes.LowRank, weight: Tensor) -> Tensor:
        assert self.magnitude is not None
        moved = weight + self.scale * self.up @ self.down
        along = 0 if self.by_column else 1
        return moved * (self.magnitude / weight.norm(dim=along)).unsqueeze(along)

    patch.setattr(changes.LowRank, "apply", apply)


def bias_not_scaled(patch: Patch) -> None:
    right = changes.Scaled.apply
    patch.setattr(changes.Scaled, "apply", lambda self, x: x if x.dim() == 1 else right(self, x))


def head_stays_tied(patch: Patch) -> None:
    patch.setattr(adapter, "same", lambda one, other: True)


def head_comes_apart(patch: Patch) -> None:
    """Of trained tokens, which a tied head shares."""

    class Nothing:
        pass

    patch.setattr(adapter, "Rows", Nothing)


def virtual_tokens_overlap_the_text(patch: Patch) -> None:
    """The text begins one position early, over the last virtual token."""
    init = scheduler.Scheduler.__init__

    def early(self: scheduler.Scheduler, *, first: int, **options: int) -> None:
        init(self, first=first - 1, **options)

    patch.setattr(scheduler.Scheduler, "__init__", early)
    patch.setattr(cache.Beginning, "length", property(lambda self: self.keys.shape[1] - 1))
    patch.setattr(
        cache.KVCache,
        "begin",
        lambda self, blocks, first, begin=cache.KVCache.begin: begin(
            self, blocks, cache.Beginning(first.keys[:, :-1], first.values[:, :-1])
        ),
    )


def virtual_tokens_out_of_order(patch: Patch) -> None:
    places = cache._places
    patch.setattr(cache, "_places", lambda blocks, start, length: places(blocks, start, length)[:: 1 if start else -1])


def virtual_tokens_at_later_positions(patch: Patch) -> None:
    place = decoder.Embedding.place
    patch.setattr(decoder.Embedding, "place", lambda self, x, at: place(self, x, at + (len(at) == 7)))


def virtual_tokens_not_placed(patch: Patch) -> None:
    """No embedding norm, no learned position."""
    place = decoder.Embedding.place
    patch.setattr(decoder.Embedding, "place", lambda self, x, at: x if len(at) == 7 else place(self, x, at))


def keys_and_values_swapped(patch: Patch) -> None:
    right = virtual.PrefixTokens.beginning

    def swapped(self: virtual.PrefixTokens, model: decoder.Decoder) -> cache.Beginning:
        keys, values = right(self, model)
        return cache.Beginning(values, keys)

    patch.setattr(virtual.PrefixTokens, "beginning", swapped)


MISTAKES = [
    ("bloom-6-heads", "lora", change_of_low_rank(scale=1.0)),
    ("gpt2-tanh", "lora", change_of_low_rank(scale=1.0)),
    ("llama-grouped-scaled", "lora", change_of_low_rank(scale=1.0)),
    ("bloom-6-heads", "rslora", rank_not_rooted),
    ("bloom-6-heads", "patterns", patterns_not_read),
    ("gpt2-tanh", "lora", square_matrices_not_turned),
    ("gpt2-tanh", "ia3", square_matrices_not_turned),
    ("bloom-6-heads", "dora", lengths_of_the_wrong_axis),
    ("gpt2-tanh", "dora", lengths_of_the_wrong_axis),
    ("bloom-6-heads", "dora", lengths_before_the_addition),
    ("gpt2-tanh", "dora-embedding", lengths_before_the_addition),
    ("bloom-6-heads", "dora", change_of_low_rank(magnitude=None)),
    ("bloom-6-heads", "ia3", bias_not_scaled),
    ("bloom-6-heads", "lora-embedding", head_stays_tied),
    ("gpt2-tanh", "saved-head", head_stays_tied),
    ("gpt2-tanh", "tokens", head_comes_apart),
    ("bloom-6-heads", "p-tuning", virtual_tokens_overlap_the_text),
    ("gpt2-tanh", "prefix", virtual_tokens_overlap_the_text),
    ("llama-grouped-scaled", "prefix", virtual_tokens_overlap_the_text),
    ("bloom-6-heads", "p-tuning", virtual_tokens_out_of_order),
    ("gpt2-tanh", "p-tuning", virtual_tokens_at_later_positions),
    ("gpt2-tanh", "p-tuning", virtual_tokens_not_placed),
    ("bloom-6-heads", "p-tuning", virtual_tokens_not_placed),
    ("gpt2-tanh", "prefix", keys_and_values_swapped),
]


@pytest.mark.parametrize(("base", "name", "mistake"), MISTAKES)
def test_mistake_turns_parity_red(
    tiny: Callable[[str], Tiny], tmp_path: Path, base: str, name: str, mistake: Mistake, monkeypatch: Patch
) -> None:
    adapted = kind(tiny(base), tmp_path, name)
    check(adapted)
    mistake(monkeypatch)
    with pytest.raises(AssertionError, match="parity lost"):
        check(adapted)
