"""A folder is read within its walls: no name and no link leads out of it, no code that comes with it runs. The cache of
huggingface_hub, which is made of links, keeps working."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import scan_cache_dir, snapshot_download

from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.errors import CheckpointError
from folders import Source

INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00003.safetensors"


def refused(folder: Path, *fragments: str) -> None:
    """In one line, when the folder or its tensors or its tokenizer are asked for."""
    with pytest.raises(CheckpointError) as caught:
        load_with_tokenizer(folder)
    message = str(caught.value)
    assert message.isprintable(), repr(message)
    assert str(folder) in message
    for fragment in fragments:
        assert fragment in message, message
    assert re.search(r": [a-z][^:]+$", message), f"no advice at the end: {message}"


def load_with_tokenizer(folder: Path) -> None:
    found = read_folder(folder)
    _ = found.tokenizer
    load_decoder(found)


def point(folder: Path, name: str) -> None:
    """Have the index name a file for one more tensor, which is nowhere else."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["more"] = name
    (folder / INDEX).write_text(json.dumps(index))


def neighbour(folder: Path) -> Path:
    """Weights outside of the folder."""
    other = folder.parent / "neighbour"
    other.mkdir()
    return Path(shutil.copy(folder / SHARD, other / "model.safetensors"))


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../neighbour/model.safetensors",
        "x/../../neighbour/model.safetensors",
        "..",
        "",
        ".",
        "{out}",
        "..\\neighbour\\model.safetensors",
        "C:\\model.safetensors",
        "C:model.safetensors",
        "\\\\host\\share\\model.safetensors",
        "/dev/stdin",
        "model\n.safetensors",
        "model\0.safetensors",
    ],
)
def test_name_that_escapes_is_refused(bloom_source: Source, name: str) -> None:
    folder = bloom_source.write("sharded-safetensors")
    name = name.format(out=neighbour(folder)) if name.startswith("{") else name
    point(folder, name)
    refused(folder, ascii(name), "none of its own")


def test_name_of_a_file_further_inside_is_no_escape(bloom_source: Source) -> None:
    folder = bloom_source.write("sharded-safetensors")
    index = json.loads((folder / INDEX).read_text())
    (folder / "more").mkdir()
    (folder / SHARD).rename(folder / "more" / SHARD)
    index["weight_map"] = {
        tensor: f"./more//{SHARD}" if name == SHARD else name for tensor, name in index["weight_map"].items()
    }
    (folder / INDEX).write_text(json.dumps(index))
    load_decoder(read_folder(folder))


def test_index_that_names_a_folder_is_refused(bloom_source: Source) -> None:
    folder = bloom_source.write("sharded-safetensors")
    (folder / "sub").mkdir()
    point(folder, "sub")
    refused(folder, "sub", "no regular file")


# --- the index against the files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sharded-safetensors", "sharded-bin"])
def test_tensor_of_the_index_that_no_file_has_is_named(source: Source, kind: str) -> None:
    folder = source.write(kind)
    index = next(folder.glob("*.index.json"))
    content = json.loads(index.read_text())
    shard = next(iter(content["weight_map"].values()))
    content["weight_map"]["transformer.h.9.odd"] = shard
    index.write_text(json.dumps(content))
    refused(folder, "'transformer.h.9.odd'", shard, "fetch the folder again")


@pytest.mark.parametrize("kind", ["sharded-safetensors", "sharded-bin"])
def test_tensor_in_another_file_than_the_index_says_is_named(source: Source, kind: str) -> None:
    folder = source.write(kind)
    index = next(folder.glob("*.index.json"))
    content = json.loads(index.read_text())
    name, shard = next(iter(content["weight_map"].items()))
    other = next(file for file in content["weight_map"].values() if file != shard)
    content["weight_map"][name] = other
    index.write_text(json.dumps(content))
    refused(folder, f"'{name}'", shard, other, "fetch the folder again")


def test_tensor_that_the_index_leaves_out_is_named(source: Source) -> None:
    folder = source.write("sharded-safetensors")
    content = json.loads((folder / INDEX).read_text())
    name = next(iter(content["weight_map"]))
    del content["weight_map"][name]
    (folder / INDEX).write_text(json.dumps(content))
    refused(folder, f"'{name}'", "the index", "fetch the folder again")


def test_index_may_leave_out_masks_and_spell_the_prefix_otherwise(gpt2_source: Source) -> None:
    gpt2_source.tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4).tril()
    folder = gpt2_source.write("sharded-safetensors")
    content = json.loads((folder / INDEX).read_text())
    del content["weight_map"]["transformer.h.0.attn.bias"]
    content["weight_map"]["h.1.attn.masked_bias"] = SHARD
    content["weight_map"] = {name.removeprefix("transformer."): file for name, file in content["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(content))
    load_decoder(read_folder(folder))


# --- links -----------------------------------------------------------------------------------------------------------

FILES = ["config.json", "generation_config.json", INDEX, SHARD, "tokenizer.json", "tokenizer_config.json"]


def whole(source: Source) -> Path:
    """A folder that has every file of `FILES`."""
    folder = source.write("sharded-safetensors")
    for name in FILES:
        if not (folder / name).exists():
            (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("absolute", [True, False])
def test_link_out_of_the_folder_is_refused(bloom_source: Source, name: str, absolute: bool) -> None:
    folder = whole(bloom_source)
    out = folder.parent / "out"
    (folder / name).rename(out)
    (folder / name).symlink_to(out if absolute else "../out")
    refused(folder, name, f"link to {out}", "put the file itself there")


def test_link_through_a_folder_is_refused(bloom_source: Source) -> None:
    folder = bloom_source.write("sharded-safetensors")
    neighbour(folder)
    (folder / "inner").symlink_to("../neighbour")
    point(folder, "inner/model.safetensors")
    refused(folder, "inner/model.safetensors", "put the file itself there")


def test_link_to_itself_is_refused(bloom_source: Source) -> None:
    folder = bloom_source.write()
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    refused(folder, "config.json", "fetch")


def test_link_within_the_folder_and_a_linked_folder_are_read(bloom_source: Source) -> None:
    folder = whole(bloom_source)
    for name in FILES:
        (folder / name).rename(folder / f"{name}.real")
        (folder / name).symlink_to(f"{name}.real")
    alias = folder.parent / "alias"
    alias.symlink_to(folder.name)
    found = read_folder(alias)
    assert found.tokenizer == alias / "tokenizer.json"
    load_decoder(found)


REVISION = "0123456789abcdef0123456789abcdef01234567"


def hub_cache(folder: Path, root: Path, shared: bool) -> Path:
    """A folder as huggingface_hub keeps it: a snapshot of links into `blobs`, which may be links themselves, into those
    of the whole cache. Gives the snapshot."""
    model = root / "models--org--name"
    snapshot = model / "snapshots" / REVISION
    for made in (snapshot, model / "blobs", model / "refs", root / "blobs" / "ab"):
        made.mkdir(parents=True)
    (model / "refs" / "main").write_text(REVISION)
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = model / "blobs" / f"{number:040x}"
        if shared and file.suffix == ".safetensors":
            store = root / "blobs" / "ab" / f"ab{number:062x}"
            shutil.copy(file, store)
            blob.symlink_to(os.path.relpath(store, blob.parent))
        else:
            shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    (root / "blobs" / ".huggingface-shared-blobs").write_text("1\n")
    return snapshot


@pytest.mark.parametrize("shared", [False, True])
def test_snapshot_in_the_cache_of_huggingface_hub_is_read(bloom_source: Source, tmp_path: Path, shared: bool) -> None:
    snapshot = hub_cache(whole(bloom_source), tmp_path / "hub", shared)
    assert snapshot_download("org/name", cache_dir=tmp_path / "hub", local_files_only=True) == str(snapshot)
    assert not scan_cache_dir(tmp_path / "hub").warnings
    found = read_folder(snapshot)
    assert found.tokenizer == snapshot / "tokenizer.json"
    expected = dict(load_decoder(read_folder(bloom_source.folder)).named_parameters())
    for name, parameter in load_decoder(found).named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize("target", ["../../../models--other--name/blobs/1", "../../refs/main", "../../../../out"])
def test_snapshot_with_a_link_elsewhere_is_refused(bloom_source: Source, tmp_path: Path, target: str) -> None:
    snapshot = hub_cache(whole(bloom_source), tmp_path / "hub", shared=False)
    out = snapshot / target
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(bloom_source.folder / SHARD, out)
    (snapshot / SHARD).unlink()
    (snapshot / SHARD).symlink_to(target)
    refused(snapshot, SHARD, "put the file itself there")


@pytest.mark.parametrize("names", [("models--org--name", "revisions"), ("clone", "snapshots")])
def test_only_a_cache_of_huggingface_hub_may_link_to_blobs(
    bloom_source: Source, tmp_path: Path, names: tuple[str, str]
) -> None:
    """Whoever packs a folder chooses what lies in it, but not where it is put."""
    snapshot = hub_cache(whole(bloom_source), tmp_path / "hub", shared=False)
    moved = tmp_path / names[0] / names[1] / REVISION
    moved.parent.mkdir(parents=True)
    shutil.move(snapshot, moved)
    shutil.move(tmp_path / "hub" / "models--org--name" / "blobs", tmp_path / names[0] / "blobs")
    refused(moved, "config.json", "put the file itself there")


# --- code of its own -------------------------------------------------------------------------------------------------


def with_code(source: Source, trace: Path, **config: Any) -> Path:
    """A folder whose config.json asks for code that leaves a trace."""
    source.config |= config
    folder = source.write()
    code = f"import pathlib\npathlib.Path({str(trace)!r}).mkdir()\n"
    for name in ("configuration_evil.py", "modeling_evil.py", "tokenization_evil.py", "__init__.py", "setup.py"):
        (folder / name).write_text(code)
    return folder


AUTO_MAP = {"AutoConfig": "configuration_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM"}


@pytest.mark.parametrize(
    "asks",
    [
        {"auto_map": AUTO_MAP},
        {"auto_map": AUTO_MAP, "architectures": ["EvilForCausalLM"], "trust_remote_code": True},
        {"trust_remote_code": True},
        {"custom_pipelines": {"text-generation": {"impl": "modeling_evil.Pipeline"}}},
        {"architectures": ["EvilForCausalLM"]},
        {"architectures": "EvilForCausalLM"},
        {"architectures": 7},
    ],
    ids=str,
)
def test_code_that_comes_with_a_family_we_know_is_ignored_with_a_note(
    bloom_source: Source, tmp_path: Path, asks: dict[str, Any], log: list[str]
) -> None:
    folder = with_code(bloom_source, tmp_path / "trace", **asks)
    found = read_folder(folder)
    assert load_decoder(found).config == read_folder(bloom_source.tiny.path).config
    assert not (tmp_path / "trace").exists()
    assert len(log) == 1
    assert str(folder / "config.json") in log[0]
    assert all(name in log[0] for name in asks)
    assert "read as a bloom" in log[0]


def test_published_config_that_asks_for_nothing_is_read_without_a_note(source: Source, log: list[str]) -> None:
    read_folder(source.write())
    source.config["architectures"] = [source.config["architectures"][0].replace("ForCausalLM", "Model")]
    read_folder(source.write())
    assert log == []


@pytest.mark.parametrize("asks", [{"auto_map": AUTO_MAP}, {"trust_remote_code": True}])
def test_code_that_comes_with_an_unknown_family_is_never_run(
    bloom_source: Source, tmp_path: Path, asks: dict[str, Any]
) -> None:
    folder = with_code(bloom_source, tmp_path / "trace", model_type="evil", **asks)
    refused(folder, "'evil'", "code that it asks for is never run")
    assert not (tmp_path / "trace").exists()


def test_config_without_end_is_refused(bloom_source: Source) -> None:
    folder = bloom_source.write()
    with (folder / "config.json").open("r+b") as opened:
        opened.truncate(1 << 40)
    refused(folder, "config.json", "larger than", "fetch")


def test_layers_without_end_are_refused(bloom_source: Source) -> None:
    bloom_source.config["n_layer"] = bloom_source.config["num_hidden_layers"] = 2**31 - 1
    refused(bloom_source.write(), "config.json", "layers", "check")
