"""Drives decoder, cache and attention as an engine would, and compares with transformers. Knows no engine.

Block tables are given by hand, so that the tests choose what an allocator would: order, gaps and earlier owners.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.model.cache import CachedAttention, CausalAttention, KVCache
from bloomery.model.decoder import Decoder
from bloomery.ops.attention import BLOCK, Span

TOLERANCE = 1e-5


@dataclass
class Row:
    """A sequence in the cache: its blocks, and how many of its tokens have been run."""

    blocks: tuple[int, ...]
    done: int = 0


def load(folder: Path) -> Decoder:
    """The decoder of a folder, in fp32."""
    return load_decoder(read_folder(folder), torch.float32)


def blocks_for(tokens: int) -> int:
    """How many blocks hold that many tokens."""
    return -(-tokens // BLOCK)


def new_cache(decoder: Decoder, blocks: int) -> KVCache:
    """A pool that holds NaN: a block that is used without `clear` is noticed."""
    cache = KVCache(decoder.config, blocks, decoder.dtype, decoder.device)
    cache.keys.numbers.fill_(torch.nan)
    cache.values.numbers.fill_(torch.nan)
    return cache


def one_row(decoder: Decoder, tokens: int) -> tuple[KVCache, Row]:
    """A pool of exactly the blocks that one sequence needs."""
    blocks = list(range(blocks_for(tokens)))
    cache = new_cache(decoder, len(blocks))
    cache.clear(blocks)
    return cache, Row(tuple(blocks))


@torch.inference_mode()
def step(decoder: Decoder, cache: KVCache, rows: Sequence[Row], news: Sequence[list[int]]) -> list[Tensor]:
    """Run new tokens of several rows in one ragged batch: per row logits (T, V)."""
    spans = [Span(row.done, len(new), row.blocks) for row, new in zip(rows, news, strict=True)]
    ids = torch.tensor([token for new in news for token in new], device=decoder.device)
    places = [place for span in spans for place in range(span.start, span.start + span.length)]
    positions = torch.tensor(places, device=decoder.device)
    hidden = decoder(ids, positions, CachedAttention(cache, spans, decoder.attention_rule))
    for row, new in zip(rows, news, strict=True):
        row.done += len(new)
    return list(decoder.logits(hidden).split([len(new) for new in news]))


def chunked(decoder: Decoder, cache: KVCache, row: Row, ids: list[int], chunk: int) -> Tensor:
    """Logits (T, V) of a prompt that is run in pieces."""
    pieces = [ids[first : first + chunk] for first in range(0, len(ids), chunk)]
    return torch.cat([step(decoder, cache, [row], [piece])[0] for piece in pieces])


def greedy(
    decoder: Decoder, cache: KVCache, rows: Sequence[Row], prompts: Sequence[list[int]], steps: int
) -> tuple[list[list[int]], list[Tensor]]:
    """Tokens of all rows, decoded together, and the logits (steps, V) they were chosen from."""
    new = list(prompts)
    tokens: list[list[int]] = [[] for _ in rows]
    chosen_from: list[list[Tensor]] = [[] for _ in rows]
    for _ in range(steps):
        last = [logits[-1] for logits in step(decoder, cache, rows, new)]
        new = [[int(logits.argmax())] for logits in last]
        for index, logits in enumerate(last):
            tokens[index] += new[index]
            chosen_from[index].append(logits)
    return tokens, [torch.stack(logits) for logits in chosen_from]


def alone(decoder: Decoder, prompt: list[int], steps: int) -> tuple[list[int], Tensor]:
    """`greedy` of one prompt in a pool of its own."""
    cache, row = one_row(decoder, len(prompt) + steps)
    tokens, logits = greedy(decoder, cache, [row], [prompt], steps)
    return tokens[0], logits[0]


@torch.inference_mode()
def uncached_logits(decoder: Decoder, batch: list[list[int]]) -> Tensor:
    """(B, T, V): whole sequences of equal length, as in training, with nothing kept."""
    ids = torch.tensor(batch, device=decoder.device)
    sequences, length = ids.shape
    positions = torch.arange(length, device=decoder.device).repeat(sequences)
    attend = CausalAttention(sequences, length, decoder.attention_rule, decoder.device)
    return decoder.logits(decoder(ids.flatten(), positions, attend)).unflatten(0, (sequences, length))


def uncached_greedy(decoder: Decoder, prompt: list[int], steps: int) -> list[int]:
    """Tokens, the whole sequence computed anew for each."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(uncached_logits(decoder, [ids])[0, -1].argmax()))
    return ids[len(prompt) :]


def assert_parity(ours: Tensor, theirs: Tensor) -> None:
    """Every logit lies within 1e-5 * max(1, max|logit|) of the expected, the maximum taken per position."""
    assert ours.shape == theirs.shape, f"parity lost: {tuple(ours.shape)} logits instead of {tuple(theirs.shape)}"
    allowed = TOLERANCE * theirs.abs().amax(-1, keepdim=True).clamp(min=1)
    excess = ((ours - theirs).abs() / allowed).nan_to_num(torch.inf).max().item()
    assert excess <= 1, f"parity lost: a logit is off by {excess:.3g} times what is allowed"
