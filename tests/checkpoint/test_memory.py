"""Loading takes the model's memory once: never the file beside the model, and nothing at all where it is mapped."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bloomery.checkpoint.convert import FILE_BYTES
from bloomery.checkpoint.folder import read_folder
from bloomery.families import FAMILIES
from bloomery.model import layout
from bloomery.quant.scheme import SCHEMES
from stores import make_store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")

CONFIGS = {
    "bloom": {"vocab_size": 10000, "hidden_size": 1536, "n_layer": 3, "n_head": 16},
    "gpt2": {"vocab_size": 10000, "n_embd": 1536, "n_layer": 3, "n_head": 16, "n_positions": 512},
}


def write_weights(name: str) -> tuple[dict[str, object], dict[str, Tensor]]:
    """config.json and 200 MB of random bf16 tensors under the names of a family."""
    family = FAMILIES[name]
    raw = CONFIGS[name] | {"model_type": name}
    config = family.to_config(raw)
    parameters = layout.shapes(config)
    numbers = torch.randn(max(parameter.numel() for parameter in parameters.values())).bfloat16()
    tensors = {}
    for ours, source in family.sources(config, parameters).items():
        metas = [parameters[ours]] if source.reorder is None else source.reorder.to_theirs(parameters[ours], config)
        for theirs, meta in zip(source.theirs, metas, strict=True):
            tensors[family.written(theirs)] = numbers[: meta.numel()].view(meta.shape).clone()
    return raw, tensors


@pytest.fixture(
    scope="module",
    params=[("bloom", "safetensors"), ("bloom", "bin"), ("gpt2", "safetensors"), ("gpt2", "bin")],
    ids="-".join,
)
def big(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """A family, a kind of file, and a folder of 200 MB that is removed again."""
    name, kind = request.param
    folder = tmp_path_factory.mktemp("big")
    raw, tensors = write_weights(name)
    (folder / "config.json").write_text(json.dumps(raw))
    if kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    yield name, kind, folder
    shutil.rmtree(folder)


def measure(folder: Path, dtype: str | None, quant: str = "none") -> dict[str, int]:
    command = [sys.executable, str(Path(__file__).parent / "peak.py"), str(folder), str(dtype), quant]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_loading_takes_the_model_once(big: tuple[str, str, Path], dtype: str | None) -> None:
    name, _, folder = big
    taken = measure(folder, dtype)
    assert taken["model"] > 180e6
    assert taken["peak"] <= 1.1 * taken["model"]
    assert taken["peak"] >= 0.9 * taken["model"]  # the weights were read, or the measurement means nothing
    if name == "bloom" and dtype is None:
        assert taken["anonymous"] < 0.05 * taken["model"]


@pytest.mark.parametrize("tp", [1, 4])
def test_a_store_is_mapped_whatever_the_family(big: tuple[str, str, Path], tmp_path: Path, tp: int) -> None:
    """Cut for more ranks than there are, what is put together takes the model once; what is whole takes nothing."""
    _, kind, folder = big
    if kind == "bin":
        pytest.skip("the store is the same")
    store = make_store(read_folder(folder), tmp_path / "store", tp=tp, file_bytes=FILE_BYTES)
    taken = measure(store.path, None)
    assert taken["model"] > 180e6
    assert 0.9 * taken["model"] <= taken["peak"] <= 1.1 * taken["model"]
    if tp == 1:
        assert taken["anonymous"] < 0.05 * taken["model"]
    else:
        assert taken["anonymous"] > 0.9 * taken["model"], "the measurement means nothing"
    shutil.rmtree(store.path)


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_packing_while_loading_takes_the_packed_model_and_one_layer(big: tuple[str, str, Path], quant: str) -> None:
    _, _, folder = big
    taken = measure(folder, None, quant)
    assert 70e6 < taken["model"] < 150e6
    layer = 2 * 10000 * 1536  # bytes of the largest, the embedding; and what is computed of a slice
    assert 0.9 * taken["model"] <= taken["peak"] <= 1.05 * taken["model"] + layer + 40e6


def test_a_store_of_packed_weights_is_mapped(big: tuple[str, str, Path], tmp_path: Path) -> None:
    _, kind, folder = big
    if kind == "bin":
        pytest.skip("the store is the same")
    store = make_store(read_folder(folder), tmp_path / "store", file_bytes=FILE_BYTES, scheme=SCHEMES["int4"])
    taken = measure(store.path, None)
    assert 70e6 < taken["model"] < 100e6
    assert 0.9 * taken["model"] <= taken["peak"] <= 1.1 * taken["model"]
    assert taken["anonymous"] < 0.05 * taken["model"]
    shutil.rmtree(store.path)
