"""How much memory this process has, now and at most: of the machine, and of a GPU. Knows no model."""

import sys
from contextlib import suppress
from pathlib import Path

import torch

from bloomery.progress import as_size


def memory_used(device: torch.device) -> dict[str, int]:
    """Bytes by name: `rss_bytes` and `rss_peak_bytes`; of a GPU also what tensors take (`cuda_allocated_bytes`), what
    PyTorch holds for them (`cuda_reserved_bytes`), and the most of both since the process began.

    What the system does not say is left out.
    """
    used = _resident()
    if device.type == "cuda":
        used["cuda_allocated_bytes"] = torch.cuda.memory_allocated(device)
        used["cuda_allocated_peak_bytes"] = torch.cuda.max_memory_allocated(device)
        used["cuda_reserved_bytes"] = torch.cuda.memory_reserved(device)
        used["cuda_reserved_peak_bytes"] = torch.cuda.max_memory_reserved(device)
    return used


def describe_memory(used: dict[str, int]) -> str:
    """In words: RSS 1.2 GB (peak 1.5 GB), …"""
    parts = []
    for name, key in (("RSS", "rss"), ("CUDA allocated", "cuda_allocated"), ("CUDA reserved", "cuda_reserved")):
        now, most = used.get(f"{key}_bytes"), used.get(f"{key}_peak_bytes")
        if now is not None and most is not None:
            parts.append(f"{name} {as_size(now)} (peak {as_size(most)})")
        elif most is not None:
            parts.append(f"{name} peak {as_size(most)}")
    return ", ".join(parts) or "not known on this system"


def _resident(status: Path = Path("/proc/self/status")) -> dict[str, int]:
    """By the kernel's own account under Linux; elsewhere only the peak is known without further packages."""
    used: dict[str, int] = {}
    with suppress(OSError):
        for line in status.read_text().splitlines():
            words = line.split()
            for name, key in (("VmRSS:", "rss_bytes"), ("VmHWM:", "rss_peak_bytes")):
                if words[:1] == [name]:
                    used[key] = 1024 * int(words[1])
    if "rss_peak_bytes" not in used:
        with suppress(ImportError):
            import resource  # not on every system

            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            used["rss_peak_bytes"] = most if sys.platform == "darwin" else 1024 * most
    return used
