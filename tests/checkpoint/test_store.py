"""However a store was cut, every rank of every number of ranks gets exactly its portion, mapped wherever it can be."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bloomery.checkpoint.folder import Folder, read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.checkpoint.store import StoreTensors, open_tensors
from bloomery.errors import BloomeryError, CheckpointError, UsageError
from bloomery.model.layout import cut_of, shapes
from stores import GROUPS, TPS, config_of, make_store, tensors_of, write_folder

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


class Stores:
    """One model of each kind, and its stores, cut for any number of ranks when first asked for."""

    def __init__(self, root: Path, vocab: int) -> None:
        self.root = root
        self.folders = {kind: write_folder(root / kind, config_of(groups, vocab)) for kind, groups in GROUPS.items()}
        self.whole = {kind: tensors_of(folder) for kind, folder in self.folders.items()}
        self.made: dict[tuple[str, int], Folder] = {}

    def get(self, kind: str, tp: int) -> Folder:
        if (kind, tp) not in self.made:
            self.made[kind, tp] = make_store(self.folders[kind], self.root / f"{kind} {tp}", tp=tp)
        return self.made[kind, tp]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """Of a vocabulary that no number of ranks divides."""
    return Stores(tmp_path_factory.mktemp("stores"), 50)


@pytest.fixture(scope="module")
def even_stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return Stores(tmp_path_factory.mktemp("even"), 64)


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("stored", TPS)
@pytest.mark.parametrize("tp", TPS)
def test_a_store_opens_for_any_number_of_ranks(stores: Stores, kind: str, stored: int, tp: int) -> None:
    folder, whole = stores.get(kind, stored), stores.whole[kind]
    for rank in range(tp):
        tensors = StoreTensors(folder, tp, rank)
        for name, tensor in whole.items():
            cut = cut_of(name, folder.config, tp, rank)
            wanted = tensor if cut is None else cut.take(tensor)
            assert torch.equal(tensors.read(name), wanted), (rank, name)
            assert tensors.kind(name) == (wanted.dtype, tuple(wanted.shape))
            tensors.release(name)
            assert torch.equal(tensors.read(name), wanted), (rank, name)


def lies_in_a_file(tensor: torch.Tensor) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        first, last = (int(number, 16) for number in fields[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return len(fields) == 6 and fields[5].endswith(".safetensors")
    return False


@linux
@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize(("stored", "tp"), [(1, 1), (1, 4), (2, 8), (8, 8), (8, 16), (16, 16)])
def test_for_more_ranks_nothing_is_copied(even_stores: Stores, kind: str, stored: int, tp: int) -> None:
    """Except keys and values that lie apart from their queries: those of all but the last of the ranks that share them,
    and did not before.
    """
    folder = even_stores.get(kind, stored)
    sharing = tp // max(stored, folder.config.num_kv_heads) if tp > folder.config.num_kv_heads else 1
    for rank in range(tp):
        tensors = StoreTensors(folder, tp, rank)
        for name in shapes(folder.config):
            tensor = tensors.read(name)
            apart = "qkv" in name and (rank + 1) % max(1, sharing) != 0
            assert apart or lies_in_a_file(tensor), (rank, name)


@linux
@pytest.mark.parametrize("kind", GROUPS)
def test_for_one_device_a_store_that_is_not_cut_is_not_copied(stores: Stores, kind: str) -> None:
    """Not even where the Hugging Face folder is, whose queries, keys and values lie apart."""
    for name, parameter in load_decoder(stores.get(kind, 1)).named_parameters():
        assert lies_in_a_file(parameter), name
    copied = load_decoder(stores.folders[kind])
    assert not lies_in_a_file(copied.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("stored", TPS)
def test_a_decoder_of_any_store_is_that_of_the_folder(stores: Stores, kind: str, stored: int) -> None:
    ours, theirs = load_decoder(stores.get(kind, stored)), load_decoder(stores.folders[kind])
    for (name, one), (other_name, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(one, other), name


def test_a_store_is_not_opened_for_ranks_it_cannot_have(stores: Stores) -> None:
    with pytest.raises(UsageError, match="tp is 3"):
        StoreTensors(stores.get("multi-head", 1), 3, 0)


# --- damaged stores --------------------------------------------------------------------------------------------------


@pytest.fixture
def store(stores: Stores, tmp_path: Path) -> Path:
    """A store of two ranks, to be damaged."""
    return Path(shutil.copytree(stores.get("two groups", 2).path, tmp_path / "store"))


def refused(path: Path, *fragments: str, kind: type[BloomeryError] = CheckpointError) -> None:
    with pytest.raises(kind) as caught:
        open_tensors(read_folder(path))
    message = str(caught.value)
    assert message.isprintable(), repr(message)
    assert str(path) in message
    for fragment in fragments:
        assert fragment in message, message


Change = Callable[[dict[str, Any]], Any]


def change_manifest(path: Path, change: Change) -> None:
    said = json.loads((path / "manifest.json").read_text())
    change(said)
    (path / "manifest.json").write_text(json.dumps(said))


FIRST = "weights-000-00001.safetensors"
CHANGES: dict[str, tuple[Change, str]] = {
    "a newer version": (lambda m: m.update(version=2), "update bloomery"),
    "an older version": (lambda m: m.update(version=0), "version 0"),
    "a version that is no number": (lambda m: m.update(version="1"), "version"),
    "a missing key": (lambda m: m.pop("tp"), "tp"),
    "an unknown key": (lambda m: m.update(tpp=1), "tpp"),
    "another quantization": (lambda m: m.update(quantization={"scheme": "int4"}), "int4"),
    "another dtype": (lambda m: m.update(dtype="int8"), "int8"),
    "another family": (lambda m: m.update(family="bloom"), "bloom"),
    "another shape": (lambda m: m["config"].update(num_layers=3), "another shape"),
    "a shape that is none": (lambda m: m["config"].update(num_layers=-1), "num_layers"),
    "a shape with an unknown word": (lambda m: m["config"].update(depth=3), "depth"),
    "rotary that is no table": (lambda m: m["config"].update(rotary=3), "table"),
    "other positions": (lambda m: m["config"].update(positions="sines"), "positions"),
    "ranks that are not there": (lambda m: m.update(tp=4), "4"),
    "ranks it cannot have": (lambda m: m.update(tp=3, weights=[*m["weights"], m["weights"][0]]), "each once"),
    "weights that are no lists": (lambda m: m.update(weights=["a", "b"]), "ranks"),
    "weights without facts": (lambda m: m["files"].pop(FIRST), "files of its own"),
    "a file that escapes": (lambda m: m["files"].update({"../x": m["files"][FIRST]}), "none of its own"),
    "a file without hash": (lambda m: m["files"][FIRST].pop("sha256"), "sha256"),
    "a hash that is none": (lambda m: m["files"][FIRST].update(sha256="0"), "hash"),
    "a negative size": (lambda m: m["files"][FIRST].update(size=-1), "size"),
    "another size": (lambda m: m["files"][FIRST].update(size=5), "5"),
    "a file that is not there": (lambda m: m["files"].update(gone=m["files"][FIRST]), "gone"),
    "a source that is no table": (lambda m: m.update(source="hub"), "source"),
    "a source of other words": (lambda m: m["source"].update(name=3), "source"),
    "config that is a list": (lambda m: m.update(config=[]), "config"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_manifest_that_is_wrong_is_refused(store: Path, change: str) -> None:
    changed, words = CHANGES[change]
    change_manifest(store, changed)
    refused(store, words)


@pytest.mark.parametrize("text", ["", "[", '{"format": "bloomery-store"', "[1]"])
def test_a_broken_manifest_is_refused(store: Path, text: str) -> None:
    (store / "manifest.json").write_text(text)
    refused(store, "manifest.json")


def test_somebody_elses_manifest_is_not_ours(stores: Stores, tmp_path: Path) -> None:
    path = Path(shutil.copytree(stores.folders["two groups"].path, tmp_path / "folder"))
    (path / "manifest.json").write_text('{"format": "webextension"}')
    assert read_folder(path).manifest is None


def test_a_configuration_that_was_changed_is_refused(store: Path) -> None:
    text = (store / "config.json").read_text()
    assert "10000.0" in text
    (store / "config.json").write_text(text.replace("10000.0", "20000.0"))
    refused(store, "manifest.json", "convert the store again")


def test_a_missing_file_is_named(store: Path) -> None:
    (store / FIRST).unlink()
    refused(store, FIRST)


def test_a_truncated_file_is_named(store: Path) -> None:
    content = (store / FIRST).read_bytes()
    (store / FIRST).write_bytes(content[:-1])
    refused(store, FIRST, f"{len(content):,}")


def resized(store: Path, name: str) -> None:
    """Have the manifest believe in a file as it is."""
    size = (store / name).stat().st_size
    change_manifest(store, lambda m: m["files"][name].update(size=size))


def edit_header(file: Path, change: Change) -> None:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    raw = json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])


QKV = "blocks.0.attn.qkv.weight"


def rename(header: dict[str, Any], new: str) -> None:
    header[new] = header.pop(QKV)


HEADERS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "a missing tensor": (lambda h: rename(h, "padding.99"), (QKV, "none of")),
    "an unknown tensor": (lambda h: rename(h, "blocks.0.extra"), ("blocks.0.extra",)),
    "a tensor twice": (lambda h: rename(h, "norm.weight"), ("norm.weight",)),
    "another shape": (lambda h: h[QKV]["shape"].reverse(), ("qkv.weight", "shape")),
    "integers": (lambda h: h[QKV].update(dtype="I32"), ("qkv.weight", "int32")),
    "bytes beyond the end": (lambda h: h[QKV]["data_offsets"].reverse(), ("qkv.weight",)),
}


@pytest.mark.parametrize("change", HEADERS)
def test_a_header_that_is_wrong_is_refused(store: Path, change: str) -> None:
    changed, words = HEADERS[change]
    names = json.loads((store / "manifest.json").read_text())["weights"][0]
    name = next(name for name in names if QKV.encode() in (store / name).read_bytes())
    edit_header(store / name, changed)
    resized(store, name)
    refused(store, *words)


def test_ranks_of_different_dtypes_are_refused(store: Path, stores: Stores, tmp_path: Path) -> None:
    folder = stores.folders["two groups"]
    other = make_store(folder, tmp_path / "half", tp=2, dtype=torch.bfloat16).path
    for name in json.loads((other / "manifest.json").read_text())["weights"][1]:
        shutil.copy(other / name, store / f"other-{name}")
    facts = json.loads((other / "manifest.json").read_text())

    def swap(said: dict[str, Any]) -> None:
        said["weights"][1] = [f"other-{name}" for name in facts["weights"][1]]
        said["files"] |= {f"other-{name}": facts["files"][name] for name in facts["weights"][1]}

    change_manifest(store, swap)
    refused(store, "bfloat16 and float32")


def test_a_store_of_ranks_that_the_model_cannot_have_is_refused(store: Path) -> None:
    names = json.loads((store / "manifest.json").read_text())["weights"][1]
    for name in names:
        shutil.copy(store / name, store / f"third-{name}")

    def add(said: dict[str, Any]) -> None:
        said["tp"] = 3
        said["weights"].append([f"third-{name}" for name in names])
        said["files"] |= {f"third-{name}": said["files"][name] for name in names}

    change_manifest(store, add)
    refused(store, "tp is 3", "16 heads")


def test_a_link_out_of_a_store_is_refused(store: Path, tmp_path: Path) -> None:
    (store / FIRST).rename(tmp_path / "elsewhere")
    (store / FIRST).symlink_to(tmp_path / "elsewhere")
    refused(store, FIRST, "link")


def test_a_manifest_that_names_another_dtype_than_the_weights_have_is_refused(store: Path) -> None:
    file = store / "manifest.json"
    described = json.loads(file.read_text())
    assert described["dtype"] == "float32"
    file.write_text(json.dumps(described | {"dtype": "float16"}))
    with pytest.raises(CheckpointError, match="its manifest says float16, but weights are float32"):
        open_tensors(read_folder(store))


def test_a_file_that_the_manifest_does_not_list_is_not_used(store: Path) -> None:
    (store / "added_tokens.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"added_tokens\.json is not one of the store's files"):
        read_folder(store)
