"""Virtual environments of the peers, one each, from pip's own index. Knows no measurement."""

import os
import subprocess
import sys
from pathlib import Path

from bloomery.log import logger

FLAGS = {
    "avx": "AVX",
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "bmi2": "BMI2",
    "avx512f": "AVX512",
    "avx512vbmi": "AVX512_VBMI",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
    "amx_tile": "AMX_TILE",
    "amx_int8": "AMX_INT8",
    "amx_bf16": "AMX_BF16",
}
"""What Linux calls a processor's instructions -> how llama.cpp is told to use them. Left to itself it asks the
compiler, which may not know the processor."""


def install(peers: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Make each environment of `packages` that is not there. What failed is said, and the others are made."""
    recipes = {
        "llama": (["--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36", "gguf==0.19.0"], cmake_arguments()),
        "ctranslate2": (["ctranslate2==4.8.5"], ""),
    }
    failed = {}
    for name in packages:
        python = peers / name / "bin" / "python"
        if python.exists() or name not in recipes:
            continue
        arguments, cmake = recipes[name]
        logger.info("installing %s into %s", name, peers / name)
        try:
            subprocess.run([sys.executable, "-m", "venv", str(peers / name)], check=True)
            environment = os.environ | ({"CMAKE_ARGS": cmake} if cmake else {})
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=True, env=environment)
        except (OSError, subprocess.CalledProcessError) as error:
            failed[name] = str(error)
            logger.warning("%s cannot be installed: %s", name, error)
    return failed


def cmake_arguments(cpuinfo: str | None = None) -> str:
    """llama.cpp for this processor: all instructions of `FLAGS` that it has, and no others.

    Args:
        cpuinfo: what /proc/cpuinfo says.
    """
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if cpuinfo is None else cpuinfo
    has = {word for line in text.splitlines() if line.startswith("flags") for word in line.split()}
    chosen = [f"-DGGML_{name}={'ON' if flag in has else 'OFF'}" for flag, name in FLAGS.items()]
    return " ".join(["-DGGML_NATIVE=OFF", *chosen])
