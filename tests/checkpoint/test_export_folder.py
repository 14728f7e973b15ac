"""A folder that is exported, directly or from any store of it, is the one that it came from, bit for bit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bloomery.checkpoint.export import export_folder
from bloomery.checkpoint.folder import Folder, read_folder
from bloomery.checkpoint.write import FileWriter
from bloomery.errors import CheckpointError, UsageError
from bloomery.model.layout import check_tp
from drive import assert_parity
from folders import KINDS, Source
from stores import config_of, contents, make_store, write_folder
from tiny import Tiny


def widest(folder: Folder) -> int:
    """The largest number of ranks, up to 4, that a model can be cut into."""
    for tp in (4, 3, 2):
        try:
            check_tp(folder.config, tp)
        except UsageError:
            continue
        return tp
    return 1


@pytest.fixture(params=["the folder", "a store", "a store that is cut"])
def origin(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], Folder]:
    """What a model folder is exported from."""

    def make(path: Path) -> Folder:
        folder = read_folder(path)
        if request.param == "the folder":
            return folder
        return make_store(folder, tmp_path / "store", tp=widest(folder) if request.param.endswith("cut") else 1)

    return make


def assert_same_bytes(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor.view(-1).view(torch.uint8), other[name].view(-1).view(torch.uint8)), name


def test_export_gives_every_family_back(checkpoint: Tiny, origin: Callable[[Path], Folder], tmp_path: Path) -> None:
    export_folder(origin(checkpoint.path), tmp_path / "new")
    written, theirs = contents(tmp_path / "new"), contents(checkpoint.path)
    assert written.keys() == theirs.keys()
    assert_same_bytes(
        load_file(tmp_path / "new" / "model.safetensors"), load_file(checkpoint.path / "model.safetensors")
    )
    for name in set(written) - {"model.safetensors"}:
        assert written[name] == theirs[name], name


@torch.inference_mode()
def test_transformers_loads_what_came_from_a_store(checkpoint: Tiny, tmp_path: Path) -> None:
    folder = read_folder(checkpoint.path)
    store = make_store(folder, tmp_path / "store", tp=widest(folder))
    export_folder(store, tmp_path / "new", shard_bytes=100_000)
    assert (tmp_path / "new" / "model.safetensors.index.json").exists()
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert type(model) is type(checkpoint.model)
    assert not any(report.values()), report
    ids = checkpoint.prompt(40)
    assert_parity(model.eval()(torch.tensor([ids])).logits[0], checkpoint.logits(ids))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_exported(
    source: Source, origin: Callable[[Path], Folder], kind: str, tmp_path: Path
) -> None:
    source.tensors = {name: tensor.half() for name, tensor in source.tensors.items()}
    export_folder(origin(source.write(kind)), tmp_path / "new")
    assert_same_bytes(load_file(tmp_path / "new" / "model.safetensors"), source.tensors)


def test_names_are_written_with_their_prefix(source: Source, origin: Callable[[Path], Folder], tmp_path: Path) -> None:
    """As transformers writes them: older folders often lack it."""
    expected = dict(source.tensors)
    source.tensors = {name.removeprefix("transformer."): tensor for name, tensor in expected.items()}
    export_folder(origin(source.write()), tmp_path / "new")
    assert_same_bytes(load_file(tmp_path / "new" / "model.safetensors"), expected)


def test_a_second_copy_of_a_tied_head_and_masks_are_left_out(
    gpt2_source: Source, origin: Callable[[Path], Folder], tmp_path: Path
) -> None:
    expected = dict(gpt2_source.tensors)
    gpt2_source.tensors["lm_head.weight"] = expected["transformer.wte.weight"].clone()
    gpt2_source.tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8).tril()
    export_folder(origin(gpt2_source.write()), tmp_path / "new")
    assert_same_bytes(load_file(tmp_path / "new" / "model.safetensors"), expected)


def test_all_words_of_the_configuration_and_all_files_are_kept(
    source: Source, origin: Callable[[Path], Folder], tmp_path: Path
) -> None:
    source.config |= {"torch_dtype": "float32", "my_own": {"word": [1, None]}}
    source.config.pop("dtype", None)
    path = source.write()
    beside = {"config.json": json.dumps(source.config, indent=7).encode(), "merges.txt": b"a b\n", "LICENSE": b"mine"}
    for name, content in beside.items():
        (path / name).write_bytes(content)
    export_folder(origin(path), tmp_path / "new")
    found = contents(tmp_path / "new")
    assert {name: found[name] for name in beside} == beside
    assert found.keys() == {*beside, "model.safetensors"}


def test_a_vocabulary_larger_than_the_tokenizers_stays(
    bloom_source: Source, origin: Callable[[Path], Folder], tmp_path: Path
) -> None:
    """Published models have rows without a token."""
    path = bloom_source.write()
    (path / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}))
    export_folder(origin(path), tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["vocab_size"] == bloom_source.config["vocab_size"]
    written = load_file(tmp_path / "new" / "model.safetensors")["transformer.word_embeddings.weight"]
    assert len(written) == bloom_source.config["vocab_size"]


def test_numbers_that_are_none_come_back(
    bloom_source: Source, origin: Callable[[Path], Folder], tmp_path: Path
) -> None:
    """Bit for bit: also which NaN it is."""
    bits = bloom_source.tensors["transformer.ln_f.weight"].view(torch.int32)
    bits[0], bits[1] = 0x7FC12345, -1
    export_folder(origin(bloom_source.write()), tmp_path / "new")
    assert_same_bytes(load_file(tmp_path / "new" / "model.safetensors"), bloom_source.tensors)


def test_tensors_of_several_dtypes_come_back(source: Source, origin: Callable[[Path], Folder], tmp_path: Path) -> None:
    source.tensors = {
        name: tensor if "ln" in name or "layernorm" in name else tensor.bfloat16()
        for name, tensor in source.tensors.items()
    }
    export_folder(origin(source.write()), tmp_path / "new")
    assert_same_bytes(load_file(tmp_path / "new" / "model.safetensors"), source.tensors)


def test_every_number_lies_at_a_multiple_of_its_size(tmp_path: Path) -> None:
    """As files of the format's own library have it, also where an odd count of narrow numbers comes first."""
    folder = write_folder(tmp_path / "folder", replace(config_of(2), hidden_size=15), dtype=torch.bfloat16)
    tensors = load_file(folder.weights[0])
    widened = {
        name: tensor if name.endswith("layernorm.weight") else tensor.float() for name, tensor in tensors.items()
    }
    save_file(widened, folder.weights[0])
    export_folder(read_folder(folder.path), tmp_path / "new")
    content = (tmp_path / "new" / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert {entry.get("dtype") for entry in header.values()} == {"F32", "BF16", None}
    for entry in header.values():
        if entry.get("dtype") == "F32":
            assert (8 + length + entry["data_offsets"][0]) % 4 == 0
    assert_same_bytes(load_file(tmp_path / "new" / "model.safetensors"), widened)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("kept", ["float32", "torch.float32", None])
def test_a_store_of_another_dtype_says_so_when_exported(
    bloom_source: Source, tmp_path: Path, key: str, kept: str | None
) -> None:
    for word in ("dtype", "torch_dtype"):
        bloom_source.config.pop(word, None)
    if kept is not None:
        bloom_source.config[key] = kept
    store = make_store(read_folder(bloom_source.write()), tmp_path / "store", dtype=torch.bfloat16)
    export_folder(store, tmp_path / "new")
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert written == bloom_source.config | ({key: "bfloat16"} if kept else {})
    expected = {name: tensor.bfloat16() for name, tensor in bloom_source.tensors.items()}
    assert_same_bytes(load_file(tmp_path / "new" / "model.safetensors"), expected)


@pytest.mark.parametrize("shard_bytes", [1, 30_000, 100_000, 10**9])
def test_shards_are_of_bounded_size_and_indexed(either: Tiny, tmp_path: Path, shard_bytes: int) -> None:
    done = export_folder(read_folder(either.path), tmp_path / "new", shard_bytes=shard_bytes)
    expected = load_file(either.path / "model.safetensors")
    if shard_bytes == 10**9:
        assert done.files == ("model.safetensors",)
        return
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values()) == done.size
    found = {}
    for name in done.files:
        tensors = load_file(tmp_path / "new" / name)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= shard_bytes or len(tensors) == 1
        assert all(index["weight_map"][tensor] == name for tensor in tensors)
        with safe_open(tmp_path / "new" / name, "pt") as file:
            assert file.metadata() == {"format": "pt"}
        found |= tensors
    assert_same_bytes(found, expected)
    assert read_folder(tmp_path / "new").weights == tuple(tmp_path / "new" / name for name in done.files)


def test_an_export_can_be_exported_onto_itself(either: Tiny, tmp_path: Path) -> None:
    export_folder(read_folder(either.path), tmp_path / "new")
    before = contents(tmp_path / "new")
    export_folder(read_folder(tmp_path / "new"), tmp_path / "new")
    assert contents(tmp_path / "new") == before


def test_what_is_no_model_is_never_replaced(either: Tiny, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"is no model|would be lost"):
        export_folder(read_folder(either.path), tmp_path / "target")
    assert contents(tmp_path / "target") == {"thesis.txt": b"mine"}


@pytest.mark.parametrize("before", [True, False], ids=["over an old one", "new"])
def test_a_failing_disk_leaves_the_old_folder_or_none(
    either: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    target = tmp_path / "new"
    if before:
        export_folder(read_folder(either.path), target)
    old = contents(target) if before else None

    def write(self: FileWriter, *arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileWriter, "write", write)
    with pytest.raises(CheckpointError, match="No space left") as caught:
        export_folder(read_folder(either.path), target)
    assert str(target) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == (["new"] if before else [])
    assert old is None or contents(target) == old
