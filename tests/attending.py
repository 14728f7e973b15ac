"""Texts, blocks and steps for attention by our own kernel, and what float64 says of them. Knows no engine."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bloomery.ops import native
from bloomery.ops.attention import BLOCK, Span
from bloomery.ops.attention_native import attend_natively, plan_step
from bloomery.ops.kept import Kept
from bloomery.ops.position import AttentionRule, position_bias

LEVELS = [*range(0 if native.library() is None else native.level() + 1)]
F32, BF16, INT8 = torch.float32, torch.bfloat16, torch.int8
NAN = torch.nan


@dataclass(frozen=True)
class Kind:
    """Heads of queries and of keys, their size, what is seen, and dtypes of a step and of the blocks."""

    heads: int = 4
    kv_heads: int = 4
    size: int = 64
    window: int | None = None
    alibi: str = ""
    dtype: torch.dtype = F32
    kept: torch.dtype = F32

    @property
    def rule(self) -> AttentionRule:
        slopes = torch.logspace(-1, -3, self.heads) if self.alibi else None
        coarse = 0.3 if self.alibi == "coarse" else None
        return AttentionRule(self.heads // self.kv_heads, slopes, coarse, self.window)


KINDS = {
    "plain": Kind(),
    "shared": Kind(heads=12, kv_heads=4, size=80),
    "all-share-one": Kind(heads=7, kv_heads=1, size=20),
    "alibi": Kind(size=4, alibi="fine"),
    "alibi-coarse": Kind(heads=6, kv_heads=2, size=65, alibi="coarse"),
    "window": Kind(size=8, window=9),
    "window-shared": Kind(heads=8, kv_heads=2, size=128, window=70),
    "window-of-itself": Kind(size=3, window=1),
    "one": Kind(heads=1, kv_heads=1, size=1),
    "odd": Kind(heads=3, kv_heads=3, size=37, alibi="fine", window=64),
}


def rounded(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What 8 bits keep of vectors (..., D), by numpy: whole numbers, and the scale of each vector, in fp32."""
    x32 = x.float().numpy()
    with np.errstate(all="ignore"):
        scales = np.abs(x32).max(-1) / np.float32(127)  # numpy's max of what holds NaN is NaN
        scales[~np.isfinite(scales)] = np.nan
        scales[scales < np.finfo(np.float32).tiny] = 0
        whole = np.rint(x32 / scales[..., None])
    whole[~(scales > 0)] = 0
    return whole.astype(np.int8), scales


def hard_vectors(size: int) -> Tensor:
    """(N, D) fp32: of every magnitude, ties, zeros, too small for a scale, too large, and not finite."""
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(100, size, generator=generator)
    x[20:40] *= torch.logspace(-44, 38, 20, dtype=torch.float64)[:, None].float()
    x[40:60] = torch.randint(-253, 254, (20, size), generator=generator) / 2
    x[40:60, 0] = 127  # a scale of 1, and of 2^-130 to 2^120
    x[45:60] *= (2.0 ** torch.linspace(-130, 120, 15, dtype=torch.float64).round())[:, None].float()
    x[60], x[61] = 0, -0.0
    x[62, -1], x[63, 0], x[64, size // 2] = NAN, torch.inf, -torch.inf
    x[65] = torch.finfo(F32).max
    x[66] = torch.finfo(F32).tiny
    x[67] = 127 * torch.finfo(F32).tiny
    return x


def as_kept(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What is kept of vectors (..., D), in float64."""
    if dtype != INT8:
        return x.to(dtype).double()
    whole, scales = rounded(x)
    return torch.from_numpy(whole * scales[..., None].astype(np.float64))


class Text:
    """Queries, keys and values of so many tokens."""

    def __init__(self, tokens: int, kind: Kind, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.kind = kind
        self.query, self.key, self.value = (
            torch.randn(tokens, heads, kind.size, generator=generator).to(kind.dtype)
            for heads in (kind.heads, kind.kv_heads, kind.kv_heads)
        )

    def expected(self) -> Tensor:
        """(T, H, D) in float64: softmax over those of the kept keys that a query sees, and nothing else."""
        rule, kept, size = self.kind.rule, self.kind.kept, self.kind.size
        q, k, v = self.query.double(), as_kept(self.key, kept), as_kept(self.value, kept)
        k, v = (x.repeat_interleave(rule.shared, 1) for x in (k, v))
        out = torch.empty_like(q)
        for place in range(len(q)):
            seen = torch.arange(max(0, place + 1 - (rule.window or place + 1)), place + 1)
            bias = position_bias(torch.tensor([[place]]), seen, replace(rule, shared=1))
            bias = bias[0, :, 0].double()  # (H or 1, S)
            scores = torch.einsum("hd,shd->hs", q[place], k[seen]) / size**0.5 + bias
            out[place] = torch.einsum("hs,shd->hd", scores.softmax(-1), v[seen])
        return out


class Pool:
    """Blocks that begin as NaN: nothing clears them here."""

    def __init__(self, kind: Kind, blocks: int = 12) -> None:
        self.kind = kind
        self.keys, self.values = (
            Kept.empty((blocks, kind.kv_heads, BLOCK, kind.size), kind.kept, torch.device("cpu")) for _ in range(2)
        )
        for kept in (self.keys, self.values):
            for tensor in kept.tensors:
                tensor.fill_(NAN if tensor.is_floating_point() else 77)

    def step(self, texts: list[Text], spans: list[Span], *, level: int | None = None, threads: int = 2) -> list[Tensor]:
        """The next tokens of each text, as the spans say; padding is NaN and goes to the last block."""
        parts: list[list[Tensor]] = [[], [], []]
        places: list[int] = []
        for text, span in zip(texts, spans, strict=True):
            own = slice(span.start, span.start + span.length)
            for part, x in zip(parts, (text.query, text.key, text.value), strict=True):
                part += [x[own], torch.full((span.padding, *x.shape[1:]), NAN, dtype=x.dtype)]
            places += [span.blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(own.start, own.stop)]
            places += [(len(self.keys.numbers) - 1) * BLOCK] * span.padding
        plan = plan_step(spans, self.kind.rule, self.kind.kv_heads, threads)
        step = [torch.cat(part) for part in parts]
        out = attend_natively(plan, torch.tensor(places), *step, self.keys, self.values, level=level, threads=threads)
        offset = 0
        for span in spans:
            offset += span.length + span.padding
            assert out[offset - span.padding : offset].isfinite().all()
        return list(out.split([n for span in spans for n in (span.length, span.padding)]))[::2]


def near(actual: Tensor, expected: Tensor) -> None:
    tolerance = {F32: (1e-5, 2e-6), BF16: (2**-8, 1e-6)}[actual.dtype]  # half a unit of bf16's last place
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance[0], atol=tolerance[1])


BLOCKS = [(7, 2, 9), (3, 10, 5), (8, 0, 4)]
SPANS = [[(0, 1)], [(63, 1), (64, 1), (127, 1)], [(0, 150), (149, 1), (37, 40)]]


def started(pool: Pool, texts: list[Text], spans: list[Span], level: int | None = None) -> None:
    """What comes before the spans has been run."""
    before = [Span(0, span.start, span.blocks) for span in spans]
    pool.step(texts, before, level=level)


def whole(kind: Kind, text: Text, blocks: tuple[int, ...] = (1, 2, 0, 3), **how: int) -> Tensor:
    return Pool(kind).step([text], [Span(0, len(text.query), blocks)], **how)[0]
