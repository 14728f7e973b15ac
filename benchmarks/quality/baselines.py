"""What compressors make of the held-out text, of the very bytes that the model is measured on. Knows no model."""

import lzma
from collections.abc import Callable
from importlib import import_module
from typing import Any

ORDER = 10
MEMORY_MB = 512
"""Of PPMd (2^20 bytes). It begins anew when it is full: 15 MB of text of this order fill between 128 and 256."""

Compress = Callable[[bytes], int]
"""Bytes -> how many they become."""


def measure_baselines(training: list[bytes], held_out: bytes) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of what was measured, and name -> reason of what was left out.

    Args:
        training: texts that a primed compressor has seen, in this order.
        held_out: what is compressed.
    """
    rows = [_row("xz -9e", xz(held_out), held_out, lzma="preset 9, extreme")]
    try:
        ppmd = import_module("pyppmd")
    except ImportError:
        return rows, {f"PPMd order {ORDER}, untrained and primed": "pyppmd is not installed: pip install pyppmd"}
    settings = {"variant": "H (7-zip's)", "order": ORDER, "memory_mb": MEMORY_MB, "pyppmd": ppmd.__version__}

    def compress(data: bytes) -> int:
        encoder = ppmd.Ppmd7Encoder(ORDER, MEMORY_MB * 2**20)
        return len(encoder.encode(data)) + len(encoder.flush())

    rows.append(_row(f"PPMd order {ORDER}, untrained", compress(held_out), held_out, **settings))
    size = primed(compress, training, held_out)
    rows.append(_row(f"PPMd order {ORDER}, primed with the training texts", size, held_out, **settings))
    return rows, {}


def xz(data: bytes) -> int:
    """Bytes of the file that `xz -9e` writes."""
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def primed(compress: Compress, training: list[bytes], held_out: bytes) -> int:
    """Bytes that the held-out text adds to the training texts, compressed as one stream."""
    before = b"".join(training)
    return compress(before + held_out) - compress(before)


def _row(name: str, size: int, held_out: bytes, **settings: Any) -> dict[str, Any]:
    return {"name": name, "bytes": size, "bits_per_byte": 8 * size / len(held_out), "settings": settings}
