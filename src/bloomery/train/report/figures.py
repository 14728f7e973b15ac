"""What people read of a run's figures: which ones, in which order and unit. Knows no run and no file."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from bloomery.progress import as_size

Value = float | int | str | None
"""None: a number that is not finite, for which JSON has no word."""

EVAL = "eval/"
"""What is measured on a held-out set is named eval/SET/WHAT; all else is of training."""


def eval_key(key: str) -> tuple[str, str] | None:
    """(set, what) of a held-out figure; None for all others."""
    name, slash, what = key.removeprefix(EVAL).rpartition("/")
    return (name, what) if key.startswith(EVAL) and slash else None


def as_words(values: Mapping[str, Value]) -> list[tuple[str, str]]:
    """(what, value) of the figures that there are, ready to be read; those of nobody's interest are left out."""
    shown = [(name, show(values)) for name, key, show in SHOWN if values.get(key) is not None]
    sets: dict[str, list[str]] = {}
    for key, value in values.items():
        found = eval_key(key)
        if found is not None and found[1] in HELD_OUT:
            sets.setdefault(found[0], []).append(HELD_OUT[found[1]].format(_number(value)))
    return shown + [(f"held out {name}:", ", ".join(parts)) for name, parts in sets.items()]


def _number(value: Value) -> float:
    return value if isinstance(value, float | int) else math.nan


def _plain(key: str, form: str, scale: float = 1) -> tuple[str, Callable[[Mapping[str, Any]], str]]:
    return key, lambda values: form.format(_number(values[key]) * scale if scale != 1 else values[key])


def _memory(key: str) -> tuple[str, Callable[[Mapping[str, Any]], str]]:
    def show(values: Mapping[str, Any]) -> str:
        most = values.get(f"{key}_peak_bytes")
        return as_size(values[f"{key}_bytes"]) + ("" if most is None else f" (peak {as_size(most)})")

    return f"{key}_bytes", show


SHOWN: tuple[tuple[str, str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("samples", *_plain("samples", "{:,}")),
    ("tokens", *_plain("tokens", "{:,}")),
    ("loss", *_plain("loss", "{:.4f}")),
    ("grad norm", *_plain("grad_norm", "{:.3f}")),
    ("lr", *_plain("lr", "{:.2e}")),
    ("batch", "batch_size", lambda values: f"{values['batch_size']} × {values.get('seq_len', '?')}"),
    ("ms/step", *_plain("ms_per_step", "{:,.0f}")),
    ("tok/s", *_plain("tokens_per_s", "{:,.0f}")),
    ("TFLOP/s", *_plain("tflops", "{:.3g}")),
    ("MFU", *_plain("mfu", "{:.1f} %", 100)),
    ("HFU", *_plain("hfu", "{:.1f} %", 100)),
    ("data wait ms", *_plain("data_wait_ms", "{:.1f}")),
    ("skipped", *_plain("skipped", "{:,}")),
    ("RSS", *_memory("rss")),
    ("CUDA", *_memory("cuda_allocated")),
    ("CUDA held", *_memory("cuda_reserved")),
)
"""(what, its key, value -> words), in the order of a line."""

HELD_OUT = {"loss": "loss {:.4f}", "perplexity": "perplexity {:,.2f}", "bits_per_byte": "{:.4f} bits per byte"}
