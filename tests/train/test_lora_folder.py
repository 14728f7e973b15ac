"""A written adapter is what peft would have written: the same logits there, on transformers, and in LLM."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from adapted import fresh, quiet
from adapted import load as load_peft
from bloomery import LLM
from bloomery.checkpoint.export import export_decoder
from bloomery.errors import CheckpointError, UsageError
from bloomery.train.lora import lora_parameters
from bloomery.train.lora_folder import write_lora
from bloomery.train.recipe.lora_options import LoraOptions
from drive import assert_parity, load, uncached_logits
from low_rank import RANK_4, adapted, family_of, tensors_of, write
from tiny import SHAPES, Tiny

EVERY = [shape.name for shape in SHAPES]
Get = Callable[[str], Tiny]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_written_adapter_gives_our_logits_in_peft_and_in_llm(
    tiny: Get, tmp_path: Path, name: str, rslora: bool
) -> None:
    options = LoraOptions(rank=3, alpha=2.5, rslora=rslora)
    base = tiny(name)
    decoder = adapted(base, options).eval()
    folder = write(decoder, base, tmp_path / "adapter", options)
    ids = base.prompt(75)
    ours = uncached_logits(decoder, [ids])[0]
    assert (ours - base.logits(ids)).abs().max() > 0.5  # the adapter matters
    assert_parity(LLM(base.path, adapter=folder, dtype="float32").logits(ids), ours)
    if not (rslora and name.startswith("mixtral")):  # peft doubles the rank of what it joins, and rsLoRA's scale moves
        with torch.inference_mode():
            assert_parity(ours, load_peft(base, folder)(torch.tensor([ids])).logits[0])


@pytest.mark.parametrize("targets", [("attn.out",), ("mlp.down",), ("attn.qkv", "mlp.up")])
@pytest.mark.parametrize("name", ["bloom-6-heads", "gpt2-tanh", "llama-biased-linear", "falcon-rw-like"])
def test_only_the_named_matrices_are_adapted(tiny: Get, tmp_path: Path, name: str, targets: tuple[str, ...]) -> None:
    """Also where names of modules end alike: attn.c_proj and mlp.c_proj."""
    options = LoraOptions(rank=4, targets=targets)
    base = tiny(name)
    decoder = adapted(base, options)
    folder = write(decoder, base, tmp_path / "adapter", options)
    layers = base.model.config.num_hidden_layers
    assert len(lora_parameters(decoder)) == 2 * layers * len(targets)
    theirs = load_peft(base, folder)
    assert tensors_of(theirs).keys() == load_file(folder / "adapter_model.safetensors").keys()
    ids = base.prompt(40)
    with torch.inference_mode():
        assert_parity(uncached_logits(decoder, [ids])[0], theirs(torch.tensor([ids])).logits[0])


@pytest.mark.parametrize("name", ["bloom-6-heads", "gpt2-tanh", "llama-grouped-scaled"])
def test_tensors_are_those_that_peft_makes(tiny: Get, tmp_path: Path, name: str) -> None:
    """Names, shapes and the configuration of an adapter for every linear layer."""
    base = tiny(name)
    folder = write(adapted(base), base, tmp_path / "adapter")
    with quiet():
        theirs = get_peft_model(fresh(base), LoraConfig(r=4, lora_alpha=6, target_modules="all-linear"))
    written, expected = load_file(folder / "adapter_model.safetensors"), tensors_of(theirs)
    assert {key: tensor.shape for key, tensor in written.items()} == {k: tensor.shape for k, tensor in expected.items()}
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    config = LoraConfig.from_pretrained(folder)
    assert (config.r, config.lora_alpha, config.bias, config.use_rslora) == (4, 6, "none", False)
    assert config.base_model_name_or_path == name
    assert config.fan_in_fan_out == (name == "gpt2-tanh")  # else peft warns and corrects it


def test_configuration_is_what_tools_read(tiny: Get, tmp_path: Path) -> None:
    """Last words of names where they are enough, whole numbers where alpha is one."""
    base = tiny("llama-grouped-scaled")
    folder = write(adapted(base, LoraOptions(rank=4)), base, tmp_path / "adapter", LoraOptions(rank=4))
    words = json.loads((folder / "adapter_config.json").read_text())
    projections = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert words["target_modules"] == projections
    assert repr(words["lora_alpha"]) == "16"
    gpt2 = tiny("gpt2-tanh")
    only = LoraOptions(rank=4, targets=("attn.out",))
    folder = write(adapted(gpt2, only), gpt2, tmp_path / "other", only)
    assert json.loads((folder / "adapter_config.json").read_text())["target_modules"] == ["attn.c_proj"]


def test_base_under_an_adapter_is_exported_unchanged(tiny: Get, tmp_path: Path) -> None:
    """Parameters keep their names: what knows a decoder by them need not know of adapters."""
    base = tiny("gpt2-tanh")
    export_decoder(adapted(base), family_of(base), tmp_path / "out")
    expected, found = load(base.path).state_dict(), load(tmp_path / "out").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_adapter_takes_the_place_of_an_adapter_and_of_nothing_else(tiny: Get, tmp_path: Path) -> None:
    base = tiny("gpt2-tanh")
    decoder, place = adapted(base), tmp_path / "adapter"
    write_lora(decoder, family_of(base), place, RANK_4, files={"README.md": "Ein Läufer.\n"})
    first = load_file(place / "adapter_model.safetensors")
    with torch.no_grad():
        decoder.blocks[0].attn.qkv.lora_b.add_(1)
    write(decoder, base, place)
    assert not (place / "README.md").exists()
    second = load_file(place / "adapter_model.safetensors")
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"
    assert torch.allclose(second[name], first[name] + 1)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear")
    with pytest.raises(UsageError, match="is no adapter"):
        write(decoder, base, tmp_path / "notes")
    (place / "diary.txt").write_text("dear")
    with pytest.raises(UsageError, match=r"diary\.txt would be lost"):
        write(decoder, base, place)


def test_full_disk_leaves_the_old_adapter(tiny: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny("gpt2-tanh")
    decoder, place = adapted(base), tmp_path / "adapter"
    write(decoder, base, place)
    before = {file.name: file.read_bytes() for file in place.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bloomery.train.lora_folder.write_json", full)
    with torch.no_grad():
        decoder.blocks[0].attn.qkv.lora_b.add_(1)
    with pytest.raises(CheckpointError, match="cannot be written"):
        write(decoder, base, place)
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]
