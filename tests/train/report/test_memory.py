"""Memory that is shown is what the system counts."""

from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from bloomery.train.report.memory import _resident, describe_memory, memory_used

CPU = torch.device("cpu")


def test_resident_memory_is_what_psutil_says() -> None:
    theirs, ours = psutil.Process().memory_info().rss, memory_used(CPU)
    assert ours["rss_bytes"] == pytest.approx(theirs, rel=0.01)
    assert ours["rss_peak_bytes"] >= ours["rss_bytes"]
    assert set(ours) == {"rss_bytes", "rss_peak_bytes"}


def test_a_peak_remembers_what_was_given_back() -> None:
    before = memory_used(CPU)
    more = before["rss_peak_bytes"] - before["rss_bytes"] + 2**26
    held = np.ones(more // 8, np.float64)
    del held
    after = memory_used(CPU)
    assert after["rss_peak_bytes"] >= before["rss_peak_bytes"] + 0.9 * 2**26
    assert after["rss_bytes"] < after["rss_peak_bytes"] - 0.9 * 2**26


def test_without_the_kernels_account_the_peak_is_known(tmp_path: Path) -> None:
    used = _resident(tmp_path / "none")
    assert set(used) == {"rss_peak_bytes"}
    assert used["rss_peak_bytes"] == pytest.approx(memory_used(CPU)["rss_peak_bytes"], rel=0.05)
    assert describe_memory(used).startswith("RSS peak ")


def test_memory_is_said_in_units_that_fit() -> None:
    used = {"rss_bytes": 1_200_000_000, "rss_peak_bytes": 1_500_000_000}
    used |= {"cuda_allocated_bytes": 2_000_000, "cuda_allocated_peak_bytes": 3_000_000}
    assert describe_memory(used) == "RSS 1.2 GB (peak 1.5 GB), CUDA allocated 2.0 MB (peak 3.0 MB)"
    assert describe_memory({}) == "not known on this system"


@pytest.mark.gpu
def test_tensors_on_a_gpu_are_counted() -> None:
    device = torch.device("cuda")
    before = memory_used(device)
    held = torch.empty(2**28, dtype=torch.uint8, device=device)
    after = memory_used(device)
    assert after["cuda_allocated_bytes"] - before["cuda_allocated_bytes"] == held.nbytes
    assert after["cuda_reserved_bytes"] >= after["cuda_allocated_bytes"]
    assert after["cuda_allocated_peak_bytes"] >= after["cuda_allocated_bytes"]
