"""What generating takes is said of every format, with its parts beside it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"
TINY = {"model_type": "bloom", "vocab_size": 2000, "hidden_size": 64, "n_layer": 2, "n_head": 4}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_every_case_is_measured_and_told(tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    small = ("--formats", "none", "int4", "--length", "70", "--long", "3000", "--rounds", "2")
    places = ("--shape", str(tmp_path / "tiny.json"), "--to", str(tmp_path / "results" / "memory.json"))
    command = [sys.executable, str(BENCHMARK), *small, *places]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr
    results = json.loads((tmp_path / "results" / "memory.json").read_text())
    cases = results["cases"]
    assert len(cases) == 6
    for name, case in cases.items():
        assert f"| {name} |" in ran.stdout
        assert case["resident"] > case["weights"] > 0
    # keys and values of blocks of 64, bf16: 2 layers of 64 numbers, twice
    assert cases["bf16, 1 text"]["kv"] == 192 * 2 * 64 * 2 * 2
    assert cases["int4, 16 texts"]["kv"] == 16 * cases["int4, 1 text"]["kv"]
    assert set(results["limited"]) & {"failed", "resident"}
    assert [len(found["mapped_over_copied"]) for found in results["huge_pages"].values()] == [2, 2]
