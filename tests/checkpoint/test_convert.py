"""A store holds a model's numbers exactly, in files that anybody can read, and appears whole or not at all."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from bloomery.checkpoint.convert import FILE_BYTES
from bloomery.checkpoint.folder import Folder, read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.checkpoint.store import open_tensors
from bloomery.checkpoint.write import FileWriter, Written
from bloomery.disk.place import Resumable
from bloomery.errors import CheckpointError, UsageError
from bloomery.model.layout import shapes
from drive import assert_parity, one_row, step
from folders import KINDS, Source
from stores import SMALL, assert_same_tensors, config_of, contents, make_store, tensors_of, write_folder
from tiny import Tiny

SCRIPT = Path(__file__).parent / "converting.py"
linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc, or takes a lock of Linux")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A model of several files' size. Not to be changed."""
    return write_folder(tmp_path_factory.mktemp("model") / "model", config_of(2))


def manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text())


def hidden(path: Path) -> list[str]:
    """What a conversion may have left beside its target."""
    return sorted(file.name for file in path.parent.iterdir() if file.name.startswith("."))


# --- what is in a store ----------------------------------------------------------------------------------------------


def test_a_store_holds_the_numbers_of_every_family(checkpoint: Tiny, tmp_path: Path) -> None:
    folder = read_folder(checkpoint.path)
    store = make_store(folder, tmp_path / "store")
    assert_same_tensors(store, folder)
    decoder = load_decoder(store)
    ids = checkpoint.prompt(12)
    cache, row = one_row(decoder, len(ids))
    assert_parity(step(decoder, cache, [row], [ids])[0], checkpoint.logits(ids))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_store(source: Source, kind: str, tmp_path: Path) -> None:
    written = contents(make_store(read_folder(source.write(kind)), tmp_path / "store").path)
    expected = contents(make_store(read_folder(source.tiny.path), tmp_path / "other").path)
    assert {name: written[name] for name in written if name.startswith("weights")} == {
        name: expected[name] for name in expected if name.startswith("weights")
    }


@pytest.mark.parametrize("tp", [1, 2, 16])
def test_manifest_says_what_is_there(folder: Folder, tmp_path: Path, tp: int) -> None:
    store = make_store(folder, tmp_path / "store", tp=tp, dtype=torch.bfloat16)
    said = manifest(store.path)
    assert (said["family"], said["dtype"], said["tp"]) == ("llama", "bfloat16", tp)
    assert said["quantization"] == {"scheme": "none"}
    assert said["source"] == {"name": str(folder.path), "revision": None, "license": None}
    assert said["config"]["rotary"]["dims"] == 4
    assert set(said["files"]) | {"manifest.json"} == {file.name for file in store.path.iterdir()}
    for name, facts in said["files"].items():
        content = (store.path / name).read_bytes()
        assert facts == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert len(said["weights"]) == tp
    assert len(said["weights"][0]) > 1 or tp == 16
    assert store.config == folder.config
    assert store.manifest is not None
    assert store.manifest.as_json() == said


def test_files_beside_the_weights_are_copied_byte_for_byte(folder: Folder, tmp_path: Path) -> None:
    source = Path(shutil.copytree(folder.path, tmp_path / "source"))
    beside = {
        "tokenizer.json": b"{}",
        "vocab.json": b"{ }",
        "merges.txt": b"a b",
        "special_tokens_map.json": b"{\n}",
        "generation_config.json": b'{"eos_token_id":   3}',
        "LICENSE": b"Anything goes\n",
        "README.md": b"---\nlicense: mit\n---\n",
        "chat_template.jinja": b"{{x}}",
    }
    for name, content in beside.items():
        (source / name).write_bytes(content)
    (source / "notes.txt").write_text("not mine to copy")
    store = make_store(read_folder(source), tmp_path / "store")
    beside["config.json"] = (source / "config.json").read_bytes()
    found = contents(store.path)
    assert {name: found[name] for name in beside} == beside
    assert {name for name in found if not name.startswith("weights")} == {*beside, "manifest.json"}
    assert store.eos_ids == (3,)


def test_the_revision_of_a_fetched_model_is_kept(folder: Folder, tmp_path: Path) -> None:
    source = Path(shutil.copytree(folder.path, tmp_path / "source"))
    fetched = {"model": "org/name", "source": "https://hub", "commit": "a" * 40, "license": "mit", "complete": True}
    (source / "fetched.json").write_text(json.dumps({"format": 1, "files": []} | fetched))
    store = make_store(read_folder(source), tmp_path / "store")
    expected = {"name": "org/name", "revision": "a" * 40, "license": "mit"}
    assert manifest(store.path)["source"] == expected
    again = make_store(store, tmp_path / "again", tp=2)
    assert manifest(again.path)["source"] == expected


@pytest.mark.parametrize("tp", [1, 16])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_safetensors_library_reads_every_file(
    folder: Folder, tmp_path: Path, tp: int, dtype: torch.dtype | None
) -> None:
    store = make_store(folder, tmp_path / "store", tp=tp, dtype=dtype)
    ours = open_tensors(store)
    seen = []
    for names in manifest(store.path)["weights"]:
        order = []
        for name in names:
            for tensor_name, tensor in load_file(store.path / name).items():
                if tensor_name.startswith("padding."):
                    assert not tensor.any()
                    continue
                seen.append(tensor_name)
                if tp == 1:
                    assert torch.equal(tensor, ours.read(tensor_name))
            with safe_open(store.path / name, "pt") as file:
                order += [name for name in file.offset_keys() if not name.startswith("padding.")]
        assert order == list(shapes(store.config)), "not in the order in which they are read"
    assert sorted(seen) == sorted(list(shapes(store.config)) * tp)


def entries(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors begin in a file, and what its header says."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return 8 + length, json.loads(content[8 : 8 + length])


def test_every_tensor_begins_at_a_multiple_of_64_bytes(gpt2: Tiny, tiny: Callable[[str], Tiny], tmp_path: Path) -> None:
    padded = 0
    for checkpoint, tp in ((gpt2, 4), (tiny("gpt2-gelu"), 5), (tiny("bloom-7-heads"), 7)):
        store = make_store(read_folder(checkpoint.path), tmp_path / str(tp), tp=tp, dtype=torch.bfloat16)
        for file in store.weights:
            first, header = entries(file)
            header.pop("__metadata__")
            padded += sum(name.startswith("padding.") for name in header)
            for name, entry in header.items():
                if not name.startswith("padding."):
                    assert (first + entry["data_offsets"][0]) % 64 == 0, name
    assert padded, "no tensor of these is of an odd size: the test says less than it means to"


def test_files_are_of_bounded_size_and_no_tensor_is_divided(folder: Folder, tmp_path: Path) -> None:
    store = make_store(folder, tmp_path / "store", file_bytes=10_000)
    for file in store.weights:
        names = [name for name in entries(file)[1] if name != "__metadata__"]
        assert file.stat().st_size < 12_000 or len(names) == 1
    assert len(make_store(folder, tmp_path / "one", file_bytes=FILE_BYTES).weights) == 1


def test_a_tied_head_is_written_once(bloom_source: Source, tmp_path: Path) -> None:
    embedding = next(t for name, t in bloom_source.tensors.items() if name.endswith("word_embeddings.weight"))
    bloom_source.tensors["lm_head.weight"] = embedding.clone()
    store = make_store(read_folder(bloom_source.write()), tmp_path / "store")
    assert not any("head" in name for file in store.weights for name in load_file(file))
    bloom_source.tensors["lm_head.weight"] = embedding + 1
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        make_store(read_folder(bloom_source.write()), tmp_path / "other")
    assert hidden(tmp_path / "other") == []


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_as_asked_and_as_torch_rounds(tmp_path: Path, dtype: torch.dtype, kept: torch.dtype) -> None:
    folder = write_folder(tmp_path / "folder", config_of(2), dtype=kept)
    written = tensors_of(make_store(folder, tmp_path / "store", dtype=dtype, tp=2))
    for name, tensor in tensors_of(folder).items():
        assert tensor.dtype == kept
        assert written[name].dtype == dtype
        assert torch.equal(written[name], tensor.to(dtype)), name


def test_each_tensor_keeps_its_own_dtype_unless_one_is_asked_for(bloom_source: Source, tmp_path: Path) -> None:
    bloom_source.tensors = {
        name: tensor if "layernorm" in name else tensor.bfloat16() for name, tensor in bloom_source.tensors.items()
    }
    folder = read_folder(bloom_source.write())
    store = make_store(folder, tmp_path / "store")
    assert {tensor.dtype for tensor in tensors_of(store).values()} == {torch.bfloat16, torch.float32}
    assert manifest(store.path)["dtype"] == "bfloat16"
    assert_same_tensors(store, folder)


LARGE = {  # name within a block -> shape is left as it is
    "fp32 to fp16": (torch.float32, torch.float16, 70000.0),
    "fp32 to bf16": (torch.float32, torch.bfloat16, 3.4e38),
    "bf16 to fp16": (torch.bfloat16, torch.float16, 1e5),
}


@pytest.mark.parametrize("case", LARGE)
@pytest.mark.parametrize("tp", [1, 2])
def test_numbers_that_are_too_large_are_refused_by_name(
    bloom_source: Source, tmp_path: Path, case: str, tp: int
) -> None:
    kept, dtype, number = LARGE[case]
    bloom_source.tensors = {name: tensor.to(kept) for name, tensor in bloom_source.tensors.items()}
    name = next(name for name in bloom_source.tensors if "h.1.mlp.dense_4h_to_h.weight" in name)
    bloom_source.tensors[name][3, 5:8] = number
    bloom_source.tensors[name][-1, -1] = -number
    folder = read_folder(bloom_source.write())
    with pytest.raises(CheckpointError) as caught:
        make_store(folder, tmp_path / "store", dtype=dtype, tp=tp)
    with pytest.raises(CheckpointError) as caught_at_load:
        load_decoder(folder, dtype)
    for message in (str(caught.value), str(caught_at_load.value)):
        assert "blocks.1.mlp.down.weight" in message
        assert "4 numbers" in message
        assert str(dtype).removeprefix("torch.") in message
        assert "\n" not in message
    assert not (tmp_path / "store").exists()
    assert hidden(tmp_path / "store") == []


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan, 65504.0])
def test_numbers_that_are_no_larger_than_before_are_not_refused(
    bloom_source: Source, tmp_path: Path, number: float
) -> None:
    name = next(name for name in bloom_source.tensors if "h.1.mlp.dense_4h_to_h.weight" in name)
    bloom_source.tensors[name][3, 5] = number
    folder = read_folder(bloom_source.write())
    store = make_store(folder, tmp_path / "store", dtype=torch.float16)
    found = tensors_of(store)["blocks.1.mlp.down.weight"][3, 5]
    assert torch.equal(found, torch.tensor(number).half()) or (found.isnan() and number != number)
    load_decoder(folder, torch.float16)


# --- from a store ----------------------------------------------------------------------------------------------------


def test_a_store_can_be_cut_again_and_back(folder: Folder, tmp_path: Path) -> None:
    first = make_store(folder, tmp_path / "first")
    cut = make_store(first, tmp_path / "cut", tp=8)
    back = make_store(cut, tmp_path / "back")
    assert contents(back.path) == contents(first.path)
    assert contents(make_store(folder, tmp_path / "direct", tp=8).path) == contents(cut.path)


def test_a_store_can_be_converted_onto_itself(folder: Folder, tmp_path: Path) -> None:
    store = make_store(folder, tmp_path / "store")
    decoder = load_decoder(store)  # mapped from files that will be gone
    again = make_store(store, tmp_path / "store", tp=4)
    assert manifest(again.path)["tp"] == 4
    assert_same_tensors(again, folder)
    assert torch.equal(decoder.norm.weight, load_decoder(again).norm.weight)
    assert hidden(store.path) == []


# --- the place -------------------------------------------------------------------------------------------------------


def test_an_older_store_is_replaced_whole(folder: Folder, tmp_path: Path) -> None:
    make_store(folder, tmp_path / "store", tp=8)
    (tmp_path / "store" / "USE_POLICY.txt").write_text("of the old one")
    store = make_store(folder, tmp_path / "store")
    assert not (store.path / "USE_POLICY.txt").exists()
    assert contents(store.path) == contents(make_store(folder, tmp_path / "other").path)
    assert hidden(store.path) == []


def test_an_empty_folder_is_filled(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert make_store(folder, tmp_path / "store").manifest is not None


@pytest.mark.parametrize(
    "what", ["file", "folder", "model", "another manifest", "store with a folder in it", "store with a text in it"]
)
def test_what_is_no_store_is_never_replaced(folder: Folder, tmp_path: Path, what: str) -> None:
    target = tmp_path / "target"
    if what == "file":
        target.write_text("mine")
    elif what == "folder":
        target.mkdir()
        (target / "thesis.txt").write_text("mine")
    elif what == "another manifest":
        target.mkdir()
        (target / "manifest.json").write_text('{"manifest_version": 3}')
    elif what == "store with a folder in it":
        make_store(folder, make_store(folder, target).path / "inside")
    elif what == "store with a text in it":
        (make_store(folder, target).path / "thesis.txt").write_text("mine")
    else:
        shutil.copytree(folder.path, target)
    before = contents(target) if target.is_dir() else target.read_bytes()
    said = "would be lost" if "in it" in what else "is no store"
    with pytest.raises(UsageError, match=said):
        make_store(folder, target)
    assert (contents(target) if target.is_dir() else target.read_bytes()) == before
    assert hidden(target) == []


def test_a_link_is_followed(folder: Folder, tmp_path: Path) -> None:
    make_store(folder, tmp_path / "real", tp=2)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    make_store(folder, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert manifest(tmp_path / "real")["tp"] == 1


def test_everybody_may_read_a_store(folder: Folder, tmp_path: Path) -> None:
    store = make_store(folder, tmp_path / "a" / "b" / "store")
    assert store.path.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o444 for file in store.path.iterdir()} == {0o444}


@pytest.mark.parametrize("options", [{"tp": 3}, {"tp": 0}, {"jobs": 0}])
def test_options_that_cannot_be_are_refused_before_anything_is_written(
    folder: Folder, tmp_path: Path, options: dict[str, int]
) -> None:
    with pytest.raises(UsageError):
        make_store(folder, tmp_path / "store", **options)
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_said_before_a_byte_is_written(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 6_000))  # type: ignore[attr-defined]
    with pytest.raises(Resumable, match="make room"):
        make_store(folder, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


# --- stopped, and continued ------------------------------------------------------------------------------------------


def start(folder: Folder, target: Path, place: str, jobs: int = 1, tp: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), str(folder.path), str(target), str(jobs), str(tp), place]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def converting() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the script, wait until it says that it has stopped, and see that it does not outlive the test."""
    started = []

    def run(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        process = start(*arguments, **options)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "stopped\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def finished(target: Path) -> dict[str, int]:
    """Finished files of a folder that is not: name -> when it was written, to the nanosecond."""
    folder = target.with_name(f".{target.name}.converting")
    lines = (folder / "convert.jsonl").read_text().splitlines()[1:]
    return {name: (folder / name).stat().st_mtime_ns for name in (json.loads(line)["file"] for line in lines)}


QUICK = [("tensor:9", 1), ("rename", 1), ("renamed", 1)]
SLOW = [(place, 1) for place in ("tensor:1", "tensor:2", "tensor:20", "folder")]
SLOW += [(place, 2) for place in ("tensor:2", "tensor:9", "tensor:20", "rename", "renamed")]


@pytest.mark.parametrize(("place", "tp"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_killed_anywhere_it_goes_on(
    folder: Folder, tmp_path: Path, converting: Callable[..., subprocess.Popen[str]], place: str, tp: int
) -> None:
    target = tmp_path / "store"
    process = converting(folder, target, place, tp=tp)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept: dict[str, int] = {}
    if place == "renamed":
        assert_same_tensors(read_folder(target), folder)
    else:
        assert not target.exists()
        kept = finished(target)
        assert bool(kept) == (place not in ("tensor:1", "tensor:2"))
    again = make_store(folder, target, tp=tp)
    assert contents(again.path) == contents(make_store(folder, tmp_path / "other", tp=tp).path)
    assert hidden(target) == []
    assert {name: (target / name).stat().st_mtime_ns for name in kept} == kept


@pytest.mark.slow
@pytest.mark.parametrize("place", ["tensor:9", "rename", "renamed"])
def test_killed_over_an_older_store_leaves_one_of_them_whole(
    folder: Folder, tmp_path: Path, converting: Callable[..., subprocess.Popen[str]], place: str
) -> None:
    target = tmp_path / "store"
    make_store(folder, target, tp=2)
    before = contents(target)
    process = converting(folder, target, place)
    process.kill()
    process.wait()
    if place == "renamed":
        assert manifest(target)["tp"] == 1
        assert_same_tensors(read_folder(target), folder)
    else:
        assert contents(target) == before
    make_store(folder, target)
    assert hidden(target) == []
    assert contents(target) == contents(make_store(folder, tmp_path / "other").path)


def test_a_torn_line_of_the_journal_costs_one_file(
    folder: Folder, tmp_path: Path, converting: Callable[..., subprocess.Popen[str]]
) -> None:
    target = tmp_path / "store"
    process = converting(folder, target, "tensor:20")
    process.kill()
    process.wait()
    journal = tmp_path / ".store.converting" / "convert.jsonl"
    kept = finished(target)
    assert len(kept) > 1
    journal.write_bytes(journal.read_bytes()[:-9])
    make_store(folder, target)
    same = [(target / name).stat().st_mtime_ns == written for name, written in kept.items()]
    assert same == [True] * (len(kept) - 1) + [False]
    assert_same_tensors(read_folder(target), folder)


@pytest.mark.slow
def test_a_finished_file_that_was_cut_short_is_written_again(
    folder: Folder, tmp_path: Path, converting: Callable[..., subprocess.Popen[str]]
) -> None:
    process = converting(folder, tmp_path / "store", "tensor:20")
    process.kill()
    process.wait()
    file = tmp_path / ".store.converting" / "weights-000-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert_same_tensors(make_store(folder, tmp_path / "store"), folder)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["dtype", "tp", "source", "size of files"])
def test_another_conversion_is_not_continued(
    folder: Folder, tmp_path: Path, converting: Callable[..., subprocess.Popen[str]], change: str
) -> None:
    source = read_folder(Path(shutil.copytree(folder.path, tmp_path / "source")))
    target = tmp_path / "store"
    process = converting(source, target, "tensor:20")
    process.kill()
    process.wait()
    options: dict[str, Any] = {}
    if change == "dtype":
        options = {"dtype": torch.bfloat16}
    elif change == "tp":
        options = {"tp": 2}
    elif change == "size of files":
        options = {"file_bytes": 2 * SMALL}
    else:
        source = write_folder(tmp_path / "source", config_of(2), generation={"eos_token_id": 4})
    store = make_store(source, target, **options)
    assert contents(store.path) == contents(make_store(source, tmp_path / "other", **options).path)
    assert hidden(target) == []


def test_two_processes_do_not_write_one_store(
    folder: Folder, tmp_path: Path, converting: Callable[..., subprocess.Popen[str]]
) -> None:
    target = tmp_path / "store"
    process = converting(folder, target, "tensor:20")
    with pytest.raises(UsageError) as caught:
        make_store(folder, target)
    assert f"another process is converting into {target}" in str(caught.value)
    assert "\n" not in str(caught.value)
    make_store(folder, tmp_path / "other")  # another place is free
    process.kill()
    process.wait()
    assert_same_tensors(make_store(folder, target), folder)


def fail(patch: pytest.MonkeyPatch, error: BaseException, after: int) -> None:
    """The disk fails, or somebody presses Ctrl-C, when so many files have been written."""
    finish, count = FileWriter.finish, iter(range(100))

    def failing(self: FileWriter) -> Written:
        if next(count) == after:
            raise error
        return finish(self)

    patch.setattr(FileWriter, "finish", failing)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("after", [0, 2])
def test_stopped_by_an_error_it_keeps_what_is_finished_and_no_more(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int
) -> None:
    target = tmp_path / "store"
    with monkeypatch.context() as patch:
        fail(patch, error, after)
        with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
            make_store(folder, target)
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not target.exists()
    unfinished = tmp_path / ".store.converting"
    if after == 0:
        assert not unfinished.exists()
    else:
        assert len(contents(unfinished)) == 1 + after
    assert_same_tensors(make_store(folder, target), folder)
    assert hidden(target) == []


@linux
def test_what_is_not_read_back_as_written_is_written_again(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the system had taken a byte for another one in the second file."""

    def forgetful(file: int, piece: memoryview) -> int:
        content = bytearray(piece)
        if os.readlink(f"/proc/self/fd/{file}").endswith("weights-000-00002.safetensors"):
            content[-1] ^= 1
        return os_write(file, content)

    os_write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", forgetful)
        with pytest.raises(Resumable, match=r"weights-000-00002\.safetensors is not read back"):
            make_store(folder, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    kept = finished(tmp_path / "store")
    assert list(kept) == ["weights-000-00001.safetensors"]
    store = make_store(folder, tmp_path / "store")
    assert {name: (store.path / name).stat().st_mtime_ns for name in kept} == kept
    assert_same_tensors(store, folder)


@pytest.mark.slow
def test_a_finished_file_that_was_changed_meanwhile_is_noticed(
    folder: Folder, tmp_path: Path, converting: Callable[..., subprocess.Popen[str]]
) -> None:
    process = converting(folder, tmp_path / "store", "tensor:20")
    process.kill()
    process.wait()
    file = tmp_path / ".store.converting" / "weights-000-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(Resumable, match=r"weights-000-00001\.safetensors"):
        make_store(folder, tmp_path / "store")
    assert_same_tensors(make_store(folder, tmp_path / "store"), folder)


# --- several threads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tp", [1, 2])
def test_several_threads_write_the_same_store(folder: Folder, tmp_path: Path, tp: int) -> None:
    moved: list[int] = []
    store = make_store(folder, tmp_path / "store", jobs=3, tp=tp, moved=moved.append)
    assert contents(store.path) == contents(make_store(folder, tmp_path / "other", tp=tp).path)
    numbers = (open_tensors(store).read(name).nbytes for name in shapes(store.config))
    assert sum(moved) == sum(numbers) or tp > 1  # of what all ranks have, each has a copy


def test_an_error_in_a_thread_ends_all_and_is_said(bloom_source: Source, tmp_path: Path) -> None:
    name = next(name for name in bloom_source.tensors if "h.2.mlp.dense_4h_to_h.weight" in name)
    bloom_source.tensors[name][3, 5] = 70000.0
    others = threading.active_count()
    with pytest.raises(CheckpointError, match=r"blocks\.2\.mlp\.down\.weight.*1 numbers"):
        make_store(read_folder(bloom_source.write()), tmp_path / "store", jobs=2, dtype=torch.float16)
    assert threading.active_count() == others


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_threads_stopped_by_an_error_keep_what_is_finished(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    target = tmp_path / "store"
    others = threading.active_count()
    with monkeypatch.context() as patch:
        fail(patch, error, 3)
        with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt):
            make_store(folder, target, jobs=3)
    assert threading.active_count() == others
    assert not target.exists()
    kept = finished(target)
    store = make_store(folder, target, jobs=3)
    assert {name: (store.path / name).stat().st_mtime_ns for name in kept} == kept
    assert contents(store.path) == contents(make_store(folder, tmp_path / "other").path)


@pytest.mark.slow
def test_threads_that_were_killed_leave_no_half_store(
    folder: Folder, tmp_path: Path, converting: Callable[..., subprocess.Popen[str]]
) -> None:
    target = tmp_path / "store"
    process = converting(folder, target, "thread", jobs=2)
    process.kill()
    process.wait()
    assert not target.exists()
    assert_same_tensors(make_store(folder, target), folder)
    assert hidden(target) == []
