"""The comparison of training speeds runs, compares the same work, and says when it does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "train_peers.py"
PEERS = ["ours", "hugging_face", "plain_loop"]


def run(to: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARK), "--tiny", "--steps", "2", "--rounds", "1", "--to", str(to), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=os.environ | environment)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "dtype"), [("bloom", "bfloat16"), ("llama", "float32")])
def test_every_peer_takes_its_turns_and_their_losses_agree(shape: str, dtype: str, tmp_path: Path) -> None:
    ran = run(
        tmp_path / "results.json", "--shapes", shape, "--dtypes", dtype, "--litgpt-python", str(tmp_path / "none")
    )
    assert ran.returncode == 0, ran.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [case["dtype"] for case in results["cases"]] == [dtype]
    for case in results["cases"]:
        assert list(case["peers"]) == PEERS
        assert max(case["apart"].values()) < 1e-3
        assert all(len(peer["losses"]) == 5 and peer["peak_bytes"] > 1e8 for peer in case["peers"].values())
        assert all(ruler["gemm_tflops"] > 0 and ruler["gb_per_s"] > 0 for ruler in case["ruler"])
    assert ran.stdout.count(f"| {shape} |") == 3
    assert "lit is left out" in ran.stderr


@pytest.mark.slow
def test_other_work_is_no_result(tmp_path: Path) -> None:
    """One peer counts its loss otherwise, which nothing else would show."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'plain_loop' in sys.argv or 'plain_loop' in getattr(sys, 'orig_argv', []):\n"
        "    import torch.nn.functional as f\n"
        "    f.cross_entropy = lambda *given, real=f.cross_entropy: 1.01 * real(*given)\n"
    )
    more = ["--shapes", "bloom", "--dtypes", "float32", "--peers", "plain_loop"]
    ran = run(tmp_path / "results.json", *more, PYTHONPATH=str(tmp_path))
    assert ran.returncode == 1
    assert "not the same work" in ran.stderr
