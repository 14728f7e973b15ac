"""Generating takes the weights once, nothing for those that are mapped, and what keys and values take: little more."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bloomery.checkpoint.convert import convert
from bloomery.checkpoint.random_origin import random_origin
from bloomery.ops import native
from bloomery.quant.scheme import SCHEMES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="asks /proc"),
    pytest.mark.skipif(native.library() is None, reason="PyTorch's own operations take more"),
]
MB = 1_000_000
BLOOM = {"model_type": "bloom", "vocab_size": 30_000, "hidden_size": 1536, "n_layer": 12, "n_head": 16}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 200,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 40_960,
}


@pytest.fixture(scope="module", params=["none", "int8", "int4"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Up to 800 MB, removed again."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(BLOOM))
    convert(random_origin(folder / "config.json", 0), folder / "store", scheme=SCHEMES.get(request.param))
    yield folder / "store"
    shutil.rmtree(folder)


def taken(model: Path, prompts: int, length: int, new_tokens: int, **options: Any) -> dict[str, int]:
    script = Path(__file__).parent / "generating.py"
    words = [str(model), *map(str, (prompts, length, new_tokens)), json.dumps(options)]
    done = subprocess.run([sys.executable, str(script), *words], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("texts", [1, 16])
def test_mapped_weights_take_no_memory_of_their_own(store: Path, texts: int) -> None:
    found = taken(store, texts, 100, 40)
    assert found["weights"] > 90 * MB
    assert found["peak"] > found["read"], "the weights were read, or the measurement means nothing"
    assert found["peak"] <= 1.1 * (found["weights"] + found["kv"])
    assert found["anonymous"] <= found["kv"] + 60 * MB


def test_a_long_prompt_takes_its_keys_and_values_and_little_more(tmp_path: Path) -> None:
    """In chunks; nothing that is kept grows with the square of its length."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    convert(random_origin(tmp_path / "config.json", 0), tmp_path / "store")
    found = taken(tmp_path / "store", 1, 40_950, 10)
    assert found["kv"] > 20 * MB
    assert found["kv"] < found["peak"] <= found["weights"] + found["kv"] + 200 * MB
