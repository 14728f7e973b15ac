"""A model exported with an adapter merged in: transformers computes with it what peft computes with both."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapted import kind
from bloomery.checkpoint.adapter import read_adapter
from bloomery.checkpoint.export import export_folder
from bloomery.checkpoint.folder import read_folder
from bloomery.cli import main
from bloomery.errors import UsageError
from drive import assert_parity
from stores import make_store
from tiny import Tiny

CASES = [
    ("bloom-6-heads", "lora"),
    ("bloom-6-heads", "saved-head"),
    ("gpt2-tanh", "dora"),
    ("llama-grouped-scaled", "rslora"),
    ("llama-grouped-scaled", "lora-head"),
    ("mistral-window", "ia3"),
]
"""Among them tied heads that come apart, which config.json then has to say."""


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("base", "name"), CASES)
@torch.inference_mode()
def test_transformers_computes_what_peft_does(
    tiny: Callable[[str], Tiny], tmp_path: Path, base: str, name: str, stored: bool
) -> None:
    adapted = kind(tiny(base), tmp_path / "adapter", name)
    folder = read_folder(adapted.tiny.path)
    if stored:
        folder = make_store(folder, tmp_path / "store", tp=2)
    export_folder(folder, tmp_path / "merged", adapter=read_adapter(adapted.path, folder))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    ids = adapted.tiny.prompt(57)
    assert_parity(merged(torch.tensor([ids])).logits[0], adapted.logits(ids))


def test_adapters_own_tokenizer_is_written(tiny: Callable[[str], Tiny], tmp_path: Path) -> None:
    adapted = kind(tiny("bloom-6-heads"), tmp_path / "adapter", "lora")
    (adapted.path / "tokenizer.json").write_text('{"its": "own"}')
    (adapted.path / "special_tokens_map.json").write_text("{}")
    folder = read_folder(adapted.tiny.path)
    export_folder(folder, tmp_path / "merged", adapter=read_adapter(adapted.path, folder))
    assert (tmp_path / "merged" / "tokenizer.json").read_text() == '{"its": "own"}'
    assert (tmp_path / "merged" / "special_tokens_map.json").read_text() == "{}"


def test_virtual_tokens_cannot_be_exported(tiny: Callable[[str], Tiny], tmp_path: Path) -> None:
    adapted = kind(tiny("gpt2-tanh"), tmp_path / "adapter", "one-prompt-token")
    folder = read_folder(adapted.tiny.path)
    with pytest.raises(UsageError, match="stand before every text: no weights can hold them"):
        export_folder(folder, tmp_path / "merged", adapter=read_adapter(adapted.path, folder))
    assert not (tmp_path / "merged").exists()


def test_verb_merges(tiny: Callable[[str], Tiny], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapted = kind(tiny("gpt2-tanh"), tmp_path / "adapter", "lora")
    target = tmp_path / "merged"
    code = main(["export", str(adapted.tiny.path), str(target), "--adapter", str(adapted.path)])
    assert (code, capsys.readouterr().out) == (0, f"{target}\n")
    folder = read_folder(adapted.tiny.path)
    export_folder(folder, tmp_path / "other", adapter=read_adapter(adapted.path, folder))
    assert (target / "model.safetensors").read_bytes() == (tmp_path / "other" / "model.safetensors").read_bytes()
