"""Export is the inverse of load, for us and for transformers, and appears whole or not at all."""

import errno
import json
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bloomery.checkpoint import export
from bloomery.checkpoint.export import export_decoder
from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.checkpoint.write import FileWriter
from bloomery.disk import place
from bloomery.errors import BloomeryError, CheckpointError, UsageError
from bloomery.families import FAMILIES
from bloomery.model.decoder import Decoder
from drive import assert_parity
from tiny import Tiny

EXTRA = {"README.md": "text ☃"}


def exported(tiny: Tiny, target: Path, **options: Any) -> Path:
    folder = read_folder(tiny.path)
    export_decoder(load_decoder(folder), folder.family, target, **options)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_export_writes_the_same_tensors(checkpoint: Tiny, tmp_path: Path) -> None:
    written = load_file(exported(checkpoint, tmp_path / "new") / "model.safetensors")
    theirs = load_file(checkpoint.path / "model.safetensors")
    assert written.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(written[name], tensor), name
        assert written[name].dtype == tensor.dtype


def test_load_of_an_export_is_the_same_decoder(checkpoint: Tiny, tmp_path: Path) -> None:
    folder = read_folder(exported(checkpoint, tmp_path / "new"))
    first = read_folder(checkpoint.path)
    assert folder.config == first.config
    ours, again = load_decoder(first), load_decoder(folder)
    for (name, one), (other_name, other) in zip(ours.named_parameters(), again.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(one, other), name


@torch.inference_mode()
def test_transformers_loads_an_export_with_the_same_logits(checkpoint: Tiny, tmp_path: Path) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(
        exported(checkpoint, tmp_path / "new"), output_loading_info=True
    )
    assert type(model) is type(checkpoint.model)
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    ids = checkpoint.prompt(40)
    assert_parity(model.eval()(torch.tensor([ids])).logits[0], checkpoint.logits(ids))


def spelled_out(config: dict[str, Any]) -> dict[str, Any]:
    """What may be left open, as transformers fills it in; and what it does not look at, left out."""
    if "n_inner" in config:
        config["n_inner"] = config["n_inner"] or 4 * config["n_embd"]
    if "head_dim" in config:
        config["head_dim"] = config["head_dim"] or config["hidden_size"] // config["num_attention_heads"]
    if "new_decoder_architecture" in config:
        del config["multi_query" if config["new_decoder_architecture"] else "num_kv_heads"]
    return config


def test_transformers_reads_the_same_config(checkpoint: Tiny, tmp_path: Path) -> None:
    """All that shapes the numbers."""
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    target = exported(checkpoint, tmp_path / "new", config=special)
    read = AutoModelForCausalLM.from_pretrained(target).config.to_dict()
    first = AutoModelForCausalLM.from_pretrained(checkpoint.path).config.to_dict()
    first["_name_or_path"] = read["_name_or_path"]
    assert spelled_out(read) == spelled_out(first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_of_the_export_is_as_asked(either: Tiny, tmp_path: Path, dtype: torch.dtype) -> None:
    target = exported(either, tmp_path / "new", dtype=dtype)
    assert json.loads((target / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    theirs = load_file(either.path / "model.safetensors")
    for name, tensor in load_file(target / "model.safetensors").items():
        assert torch.equal(tensor, theirs[name].to(dtype)), name
    assert AutoModelForCausalLM.from_pretrained(target, dtype="auto").dtype == dtype


def test_extra_entries_and_files_are_written(either: Tiny, tmp_path: Path) -> None:
    generation = {"eos_token_id": [2, 3]}
    target = exported(either, tmp_path / "new", config={"eos_token_id": 2}, generation=generation, files=EXTRA)
    assert read_folder(target).raw["eos_token_id"] == 2
    assert json.loads((target / "generation_config.json").read_text()) == generation
    assert (target / "README.md").read_text(encoding="utf-8") == "text ☃"
    assert sorted(contents(target)) == ["README.md", "config.json", "generation_config.json", "model.safetensors"]


def test_model_in_training_can_be_exported(either: Tiny, tmp_path: Path) -> None:
    folder = read_folder(either.path)
    decoder = load_decoder(folder).requires_grad_(True)
    export_decoder(decoder, folder.family, tmp_path / "new")
    assert contents(tmp_path / "new")["model.safetensors"]
    assert all(parameter.requires_grad for parameter in decoder.parameters())


def test_everybody_may_read_what_is_exported(either: Tiny, tmp_path: Path) -> None:
    target = exported(either, tmp_path / "new", files=EXTRA)
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert {stat.S_IMODE(file.stat().st_mode) & 0o444 for file in target.iterdir()} == {0o444}


def test_missing_parents_are_made(either: Tiny, tmp_path: Path) -> None:
    read_folder(exported(either, tmp_path / "a" / "b" / "new"))


def test_export_onto_itself_keeps_the_model(either: Tiny, tmp_path: Path) -> None:
    """The weights that are written are mapped from the folder that is replaced."""
    target = exported(either, tmp_path / "model")
    before = contents(target)
    folder = read_folder(target)
    decoder = load_decoder(folder)
    export_decoder(decoder, folder.family, target)
    assert contents(target) == before
    assert torch.equal(decoder.embed.tokens.weight, load_decoder(folder).embed.tokens.weight)


@pytest.fixture(params=["in one step", "in two steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to replace a folder: file systems differ in what they can do."""
    if request.param == "in two steps":
        monkeypatch.setattr(place, "_exchange", lambda one, other: False)


@pytest.mark.usefixtures("way")
def test_export_replaces_the_old_folder_and_leaves_nothing_else(either: Tiny, tmp_path: Path) -> None:
    target = exported(either, tmp_path / "model", files={"USE_POLICY.txt": "gone"})
    exported(either, target, dtype=torch.bfloat16)
    assert sorted(contents(target)) == ["config.json", "model.safetensors"]
    assert load_decoder(read_folder(target)).dtype == torch.bfloat16
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.usefixtures("way")
def test_link_is_followed(either: Tiny, tmp_path: Path) -> None:
    real = exported(either, tmp_path / "real")
    link = tmp_path / "link"
    link.symlink_to(real)
    exported(either, link, dtype=torch.bfloat16)
    assert link.is_symlink()
    assert load_decoder(read_folder(real)).dtype == torch.bfloat16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


@pytest.mark.skipif(sys.platform != "linux", reason="a call of Linux")
def test_folders_are_exchanged_in_one_step_here(tmp_path: Path) -> None:
    """Otherwise the tests above would try one way twice."""
    for name in ("a", "b"):
        (tmp_path / name / name).mkdir(parents=True)
    assert place._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert (tmp_path / "b" / "a").is_dir()
    assert not place._exchange(tmp_path / "a", tmp_path / "none")


class Crash(BaseException):
    """Not even an Exception, like Ctrl-C."""


def crash_in_the_weights(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    def finish(self: FileWriter) -> None:
        raise error

    patch.setattr(FileWriter, "finish", finish)


def crash_in_the_configuration(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    def write(file: Path, content: bytes) -> None:
        file.write_text("{")
        raise error

    patch.setattr(export, "write_bytes", write)


def crash_before_the_last_rename(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The old folder is out of the way and the new one is not yet there."""
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if target.name == "model" and not self.name.endswith(".old"):
            raise error
        return rename(self, target)

    patch.setattr(place, "_exchange", lambda one, other: False)
    patch.setattr(Path, "rename", fail)


CRASHES = [crash_in_the_weights, crash_in_the_configuration, crash_before_the_last_rename]


@pytest.mark.parametrize("crash", CRASHES)
@pytest.mark.parametrize("error", [Crash(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))], ids=repr)
@pytest.mark.parametrize("before", [True, False], ids=["over an old one", "new"])
def test_crash_leaves_the_old_folder_or_none(
    either: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    crash: Callable[[pytest.MonkeyPatch, BaseException], None],
    error: BaseException,
    before: bool,
) -> None:
    target = tmp_path / "model"
    old = contents(exported(either, target, files=EXTRA)) if before else None
    crash(monkeypatch, error)
    with pytest.raises(Crash if isinstance(error, Crash) else CheckpointError) as caught:
        exported(either, target, dtype=torch.bfloat16)
    if isinstance(error, OSError):
        assert str(target) in str(caught.value)
        assert "No space left" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == (["model"] if before else [])
    if old is not None:
        assert contents(target) == old


@pytest.mark.parametrize("parent", ["/proc/bloomery", "{tmp}/file"])
def test_place_that_cannot_be_written_is_named(either: Tiny, tmp_path: Path, parent: str) -> None:
    (tmp_path / "file").write_text("in the way")
    target = Path(parent.format(tmp=tmp_path)) / "model"
    with pytest.raises(CheckpointError) as caught:
        exported(either, target)
    assert str(target) in str(caught.value)
    assert "choose another place" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_parent_without_permission_is_named(either: Tiny, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(CheckpointError, match="Permission denied"):
        exported(either, tmp_path / "locked" / "model")


@pytest.mark.parametrize("what", ["file", "folder", "another config.json", "a model with a folder in it"])
def test_what_is_no_model_is_never_replaced(either: Tiny, tmp_path: Path, what: str) -> None:
    target = tmp_path / "target"
    if what == "file":
        target.write_text("mine")
    elif what == "another config.json":
        target.mkdir()
        (target / "config.json").write_text("{}")
    else:
        if what == "a model with a folder in it":
            exported(either, target)
        (target / "sub").mkdir(parents=True)
        (target / "sub" / "thesis.txt").write_text("mine")
    before = target.read_bytes() if what == "file" else contents(target)
    with pytest.raises(UsageError, match=r"is no model|would be lost"):
        exported(either, target)
    assert (target.read_bytes() if what == "file" else contents(target)) == before
    if target.is_dir() and what != "another config.json":
        assert (target / "sub" / "thesis.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_empty_folder_is_filled(either: Tiny, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    read_folder(exported(either, tmp_path / "empty"))


@pytest.mark.parametrize(
    "change", [{"ffn_size": 100}, {"activation": "relu"}, {"embed_norm": False}, {"positions": "learned"}], ids=str
)
def test_decoder_that_the_family_cannot_describe_is_refused(
    bloom: Tiny, tmp_path: Path, change: dict[str, Any]
) -> None:
    """A BLOOM has no words for these: transformers would load another model than was trained."""
    decoder = Decoder(replace(read_folder(bloom.path).config, **change))
    with pytest.raises(BloomeryError, match="bloom"):
        export_decoder(decoder, FAMILIES["bloom"], tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
