"""The peak is what was given, what the maker says of exactly this device, or measured; and it says which."""

import itertools

import pytest
import torch

from bloomery.train.report.peak import DENSE_BF16, find_peak, measured_peak

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_given_peak_is_taken() -> None:
    assert find_peak(CPU, torch.float32, 1.5) == (1.5, "given: log.peak_tflops 1.5")


@pytest.mark.parametrize("name", DENSE_BF16)
def test_a_known_gpu_is_looked_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    tflops, origin = find_peak(CUDA, torch.bfloat16)
    assert tflops == DENSE_BF16[name]
    assert origin.startswith(f"table: {name} bfloat16")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", torch.bfloat16),
        ("A GPU of tomorrow", torch.bfloat16),
        ("NVIDIA H200", torch.float32),
    ],
)
def test_what_the_table_does_not_hold_is_measured(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr("bloomery.train.report.peak.measured_peak", lambda *given: asked.append(given))
    find_peak(CUDA, dtype)
    assert asked == [(CUDA, dtype)]


def test_a_measured_peak_is_operations_by_seconds() -> None:
    ticks = itertools.count()
    tflops, origin = measured_peak(CPU, torch.float32, clock=lambda: 0.015 * next(ticks))  # 15 ms from call to call
    # Twice the size is eight times the work, and would take 120 ms: too long, so that 256 it is.
    assert tflops == pytest.approx(2 * 256**3 / 0.015 / 1e12)
    assert "products of 256×256 in float32" in origin


def test_the_size_grows_until_a_product_takes_long_enough() -> None:
    ticks = itertools.count()
    tflops, origin = measured_peak(CPU, torch.bfloat16, clock=lambda: 0.01 * next(ticks))
    assert tflops == pytest.approx(2 * 2048**3 / 0.01 / 1e12)
    assert "2048×2048 in bfloat16" in origin


@pytest.mark.gpu
def test_a_gpu_is_measured() -> None:
    tflops, origin = measured_peak(CUDA, torch.bfloat16)
    assert tflops > 1
    assert torch.cuda.get_device_name(CUDA) in origin
