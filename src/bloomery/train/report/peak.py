"""What a device can do at most, and where that number comes from: given, a table, or a product measured now.

A device that is not in the table is measured, never taken for another. Knows no model.
"""

import math
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from bloomery.devices import threads

DENSE_BF16 = {
    "NVIDIA A10": 125.0,
    "NVIDIA A40": 149.7,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H100 80GB HBM3": 989.5,
    "NVIDIA H200 NVL": 835.5,
    "NVIDIA H200": 989.5,
    "NVIDIA B200": 2250.0,
}
"""TFLOP/s of tensor cores in bf16 and fp16 by NVIDIA's data sheets, without sparsity (half of what they print with it).
By the device's whole name: a slice of a GPU has another."""

PASS_SECONDS = 0.1
"""About the longest that a product may take."""
SECONDS = 0.5
"""How long products are repeated: the best of them is the one that nothing disturbed."""


class Peak(NamedTuple):
    """TFLOP/s that MFU and HFU are fractions of, and where they come from, in words."""

    tflops: float
    origin: str


def find_peak(device: torch.device, dtype: torch.dtype, given: float | None = None) -> Peak:
    """The peak for products in `dtype`: `given`, or of the table, or measured."""
    if given is not None:
        return Peak(given, f"given: log.peak_tflops {given:g}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if name in DENSE_BF16 and dtype in (torch.bfloat16, torch.float16):
        known = DENSE_BF16[name]
        return Peak(known, f"table: {name} {_name(dtype)} {known:g} TFLOP/s without sparsity")
    return measured_peak(device, dtype)


def measured_peak(device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = perf_counter) -> Peak:
    """The best of half a second of products of square matrices, as large as take a tenth of a second each, up to 2048
    (8192 on a GPU).

    Args:
        clock: seconds, from any beginning.
    """
    largest = 8192 if device.type == "cuda" else 2048
    matrix = _matrix(device, dtype, 256)
    _seconds(matrix, clock)  # the first one also loads code
    while len(matrix) < largest and 8 * min(_seconds(matrix, clock) for _ in range(3)) < PASS_SECONDS:
        matrix = _matrix(device, dtype, 2 * len(matrix))
    best, count, until = math.inf, 0, clock() + SECONDS
    while count < 3 or clock() < until:
        best, count = min(best, _seconds(matrix, clock)), count + 1
    size = len(matrix)
    tflops = 2 * size**3 / max(best, 1e-9) / 1e12
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads()} threads"
    return Peak(tflops, f"measured: best of {count} products of {size}×{size} in {_name(dtype)} on {where}")


def _matrix(device: torch.device, dtype: torch.dtype, size: int) -> Tensor:
    """Random numbers: on zeros a GPU is faster."""
    numbers = torch.Generator(device).manual_seed(0)
    return torch.randn(size, size, device=device, generator=numbers).to(dtype)


def _seconds(matrix: Tensor, clock: Callable[[], float]) -> float:
    if matrix.is_cuda:
        torch.cuda.synchronize(matrix.device)
    began = clock()
    product = matrix @ matrix
    if product.is_cuda:
        torch.cuda.synchronize(product.device)
    return clock() - began


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
