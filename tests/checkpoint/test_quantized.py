"""A store of packed weights holds what packing gives, each rank's portion on its own, and is read as it was made."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bloomery import LLM, SamplingParams
from bloomery.checkpoint.checks import check_hashes, check_numbers, check_structure
from bloomery.checkpoint.convert import FILE_BYTES, convert
from bloomery.checkpoint.export import export_folder
from bloomery.checkpoint.files import MappedFile
from bloomery.checkpoint.folder import Folder, read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.checkpoint.origin import origin_of
from bloomery.checkpoint.random_origin import random_origin
from bloomery.checkpoint.store import StoreTensors, open_portions, open_tensors
from bloomery.errors import BloomeryError, CheckpointError, UsageError
from bloomery.model.layout import cut_of
from bloomery.quant.pack import pack
from bloomery.quant.scheme import SCHEMES, Scheme
from bloomery.quant.swap import swap_linears_, weights
from bloomery.train.model import describe
from bloomery.train.recipe.run_options import ModelShape
from drafted import build_pair
from folders import Source
from stores import GROUPS, config_of, contents, make_store, tensors_of, write_folder
from tiny import Tiny

SCRIPT = Path(__file__).parent / "converting.py"
INT4 = SCHEMES["int4"]
QKV = "blocks.0.attn.qkv.weight"
schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A model of several files' size. Not to be changed."""
    return write_folder(tmp_path_factory.mktemp("model") / "model", config_of(2))


@pytest.fixture
def store(folder: Folder, tmp_path: Path) -> Path:
    """A store in int4, to be damaged."""
    return make_store(folder, tmp_path / "store", scheme=INT4).path


def assert_same_decoders(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Bit for bit."""
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8)), name


# --- what is in a store ----------------------------------------------------------------------------------------------


@schemes
def test_a_store_holds_what_packing_while_loading_gives(checkpoint: Tiny, scheme: Scheme, tmp_path: Path) -> None:
    source = read_folder(checkpoint.path)
    made = make_store(source, tmp_path / "store", scheme=scheme)
    expected = load_decoder(source)
    swap_linears_(expected, scheme)
    assert_same_decoders(load_decoder(source, scheme=scheme), expected)
    assert_same_decoders(load_decoder(made), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_dtype_is_that_of_what_is_not_packed(folder: Folder, dtype: torch.dtype, tmp_path: Path) -> None:
    made = make_store(folder, tmp_path / "store", scheme=INT4, dtype=dtype)
    assert_same_decoders(load_decoder(made, dtype), load_decoder(folder, dtype, scheme=INT4))
    assert {entry.dtype for file in made.weights for name, entry in load_file(file).items() if "pad" not in name} == {
        dtype,
        torch.uint8,
    }
    assert made.manifest is not None
    assert made.manifest.dtype == str(dtype).removeprefix("torch.")


@schemes
@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("tp", [1, 2, 16])
def test_each_rank_packs_its_own_portion(kind: str, tp: int, scheme: Scheme, tmp_path: Path) -> None:
    config = replace(config_of(GROUPS[kind]), tied_head=tp == 2)
    source = write_folder(tmp_path / "model", config)
    made, whole = make_store(source, tmp_path / "store", tp=tp, scheme=scheme), tensors_of(source)
    portions = open_portions(made)
    assert len(portions) == tp
    for rank, tensors in enumerate(portions):
        for name, weight in weights(config, scheme).items():
            cut = cut_of(name, config, tp, rank)
            part = whole[weight.plain] if cut is None else cut.take(whole[weight.plain])
            expected = part if weight.scheme is None else pack(part, scheme)
            assert tensors.kind(name) == (expected.dtype, tuple(expected.shape)), (rank, name)
            assert torch.equal(tensors.read(name), expected), (rank, name)


@schemes
def test_the_manifest_names_the_scheme(folder: Folder, scheme: Scheme, tmp_path: Path) -> None:
    made = make_store(folder, tmp_path / "store", scheme=scheme)
    said = json.loads((made.path / "manifest.json").read_text())
    assert said["quantization"] == {"scheme": scheme.name}
    assert made.manifest is not None
    assert made.manifest.scheme is scheme
    assert made.manifest.as_json() == said


def test_names_stay_and_a_tied_head_gets_one(bloom: Tiny, tmp_path: Path) -> None:
    source = read_folder(bloom.path)
    assert source.config.tied_head
    plain, packed = (
        [name for file in made.weights for name in load_file(file) if not name.startswith("padding.")]
        for made in (make_store(source, tmp_path / "a"), make_store(source, tmp_path / "b", scheme=INT4))
    )
    assert set(packed) == {*plain, "head.weight"}


@linux
def test_a_store_is_used_where_it_is_mapped(folder: Folder, tmp_path: Path) -> None:
    made = make_store(folder, tmp_path / "store", scheme=INT4)
    places = Path("/proc/self/maps")
    for name, parameter in load_decoder(made).named_parameters():
        lines = [line.split(maxsplit=5) for line in places.read_text().splitlines()]
        spans = [(*(int(n, 16) for n in fields[0].split("-")), fields) for fields in lines]
        (fields,) = [fields for first, last, fields in spans if first <= parameter.data_ptr() < last]
        assert fields[-1].strip().endswith(".safetensors"), name
        assert parameter.data_ptr() % 64 == 0, name


def test_packed_bytes_that_begin_anywhere_are_moved_to_where_numbers_may_begin(store: Path, folder: Folder) -> None:
    for file in store.glob("weights-*"):
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        file.write_bytes((length + 3).to_bytes(8, "little") + content[8 : 8 + length] + b"   " + content[8 + length :])
        change_manifest(store, lambda m, file=file: m["files"][file.name].update(size=file.stat().st_size))
    raw = next(file for file in map(MappedFile, sorted(store.glob("weights-*"))) if QKV in file.names)
    assert raw.read(QKV).data_ptr() % 64, "the test says less than it means to"
    decoder = load_decoder(read_folder(store))
    assert decoder.blocks[0].attn.qkv.weight.data_ptr() % 64 == 0
    assert_same_decoders(decoder, load_decoder(folder, scheme=INT4))


# --- how it is made --------------------------------------------------------------------------------------------------


def test_threads_and_sizes_of_files_do_not_show(folder: Folder, tmp_path: Path) -> None:
    one = make_store(folder, tmp_path / "one", scheme=INT4, tp=2)
    several = make_store(folder, tmp_path / "several", scheme=INT4, tp=2, jobs=3)
    assert contents(one.path) == contents(several.path)
    whole = make_store(folder, tmp_path / "whole", scheme=INT4, file_bytes=FILE_BYTES)
    assert len(whole.weights) == 1
    assert_same_decoders(load_decoder(whole), load_decoder(folder, scheme=INT4))


@schemes
@pytest.mark.parametrize("tp", [1, 2])
def test_progress_is_that_of_packed_bytes(folder: Folder, scheme: Scheme, tp: int, tmp_path: Path) -> None:
    totals, moved = list[int](), list[int]()
    done = convert(
        origin_of(folder, "x"),
        tmp_path / "store",
        tp=tp,
        scheme=scheme,
        begun=lambda total, kept: totals.append(total),
        moved=moved.append,
    )
    tensors = [load_file(file) for file in read_folder(tmp_path / "store").weights]
    written = sum(t.nbytes for one in tensors for name, t in one.items() if not name.startswith("padding."))
    assert sum(moved) == written
    assert totals == [done.size]
    assert done.size == sum(file.stat().st_size for file in read_folder(tmp_path / "store").weights)


def test_a_random_model_can_be_packed(tmp_path: Path, folder: Folder) -> None:
    convert(random_origin(folder.path, 3, torch.bfloat16), tmp_path / "plain")
    convert(random_origin(folder.path, 3, torch.bfloat16), tmp_path / "packed", scheme=INT4)
    ours = load_decoder(read_folder(tmp_path / "packed"))
    assert_same_decoders(ours, load_decoder(read_folder(tmp_path / "plain"), scheme=INT4))
    llm = LLM(shape=folder.path, seed=3, quant="int4")
    assert_same_decoders(ours, llm.decoder)


@pytest.mark.parametrize("place", ["tensor:20", "rename"])
def test_killed_it_goes_on(folder: Folder, tmp_path: Path, place: str) -> None:
    target = tmp_path / "store"
    command = [sys.executable, str(SCRIPT), str(folder.path), str(target), "1", "2", place, "int4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stopped\n"
        process.kill()
    unfinished = target.with_name(".store.converting")
    lines = (unfinished / "convert.jsonl").read_text().splitlines()[1:]
    kept = {name: (unfinished / name).stat().st_mtime_ns for name in (json.loads(line)["file"] for line in lines)}
    assert kept
    assert not target.exists()
    again = make_store(folder, target, tp=2, scheme=INT4)
    assert contents(again.path) == contents(make_store(folder, tmp_path / "other", tp=2, scheme=INT4).path)
    assert {name: (target / name).stat().st_mtime_ns for name in kept} == kept
    assert not unfinished.exists()


@pytest.mark.parametrize("other", [None, SCHEMES["int8"], SCHEMES["int4-g128"]], ids=str)
def test_what_was_begun_in_another_scheme_is_not_continued(
    folder: Folder, tmp_path: Path, other: Scheme | None, log: list[str]
) -> None:
    target = tmp_path / "store"
    command = [sys.executable, str(SCRIPT), str(folder.path), str(target), "1", "1", "rename", "int4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stopped\n"
        process.kill()
    made = make_store(folder, target, scheme=other)
    assert any("is of another conversion: starting anew" in line for line in log)
    assert contents(made.path) == contents(make_store(folder, tmp_path / "other", scheme=other).path)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("tp", [1, 2])
def test_weights_that_are_no_numbers_are_refused_by_name(
    bloom_source: Source, tmp_path: Path, number: float, tp: int
) -> None:
    name = next(name for name in bloom_source.tensors if "h.1.mlp.dense_4h_to_h.weight" in name)
    bloom_source.tensors[name][3, 5] = number
    source = read_folder(bloom_source.write())
    for make in (
        lambda: make_store(source, tmp_path / "store", scheme=INT4, tp=tp),
        lambda: load_decoder(source, scheme=INT4),
    ):
        with pytest.raises(CheckpointError) as caught:
            make()
        assert "tensor 'blocks.1.mlp.down.weight': 1 numbers are NaN or infinite" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


# --- damaged stores --------------------------------------------------------------------------------------------------


def change_manifest(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    said = json.loads((path / "manifest.json").read_text())
    change(said)
    (path / "manifest.json").write_text(json.dumps(said))


def refused(path: Path, *fragments: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_tensors(read_folder(path))
    message = str(caught.value)
    assert message.isprintable(), repr(message)
    for fragment in (str(path), *fragments):
        assert fragment in message, message


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"scheme": "int3"}, "and we know the schemes none, int8, int4, int4-g128"),
        ({"scheme": ["int4"]}, "and we know the schemes"),
        ({"scheme": "int4", "zeros": True}, "and we know the schemes"),
        ({}, "and we know the schemes"),
        ({"scheme": "none"}, "is uint8"),
        ({"scheme": "int8"}, "has shape"),
        ({"scheme": "int4-g128"}, "has shape"),
    ],
)
def test_another_scheme_than_the_weights_have_is_refused(store: Path, said: dict[str, Any], words: str) -> None:
    change_manifest(store, lambda m: m.update(quantization=said))
    refused(store, words)


def test_a_plain_store_that_claims_a_scheme_is_refused(folder: Folder, tmp_path: Path) -> None:
    path = make_store(folder, tmp_path / "plain").path
    change_manifest(path, lambda m: m.update(quantization={"scheme": "int4"}))
    refused(path, "is float32, not packed in int4 as its manifest says")


CHANGES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "a panel less": (lambda t: t[:-1], "has shape [4, "),
    "a byte less": (lambda t: t[:, :-1], "has shape"),
    "the other way round": (lambda t: t.T, "has shape"),
    "flat": (lambda t: t.reshape(-1), "has shape"),
    "signed": (lambda t: t.view(torch.int8), "is int8"),
    "plain": (lambda t: torch.zeros(50, 24), "is float32"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_packed_tensors_of_another_shape_or_dtype_are_refused(store: Path, change: str) -> None:
    changed, words = CHANGES[change]
    file = next(file for file in sorted(store.glob("weights-*")) if QKV in load_file(file))
    tensors = load_file(file)
    tensors[QKV] = changed(tensors[QKV]).contiguous()
    save_file(tensors, file)
    change_manifest(store, lambda m: m["files"][file.name].update(size=file.stat().st_size))
    refused(store, QKV, words)


def test_a_changed_bit_is_found_by_its_hash(store: Path) -> None:
    file = store / "weights-000-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    found = check_structure(store)
    assert found.folder is not None
    assert found.check.passed
    assert [check.passed for check in check_hashes(found.folder)] == [False]


@schemes
@pytest.mark.parametrize("tp", [1, 2])
def test_scales_that_are_no_numbers_are_found(folder: Folder, scheme: Scheme, tp: int, tmp_path: Path) -> None:
    path = make_store(folder, tmp_path / "store", scheme=scheme, tp=tp).path
    found = check_structure(path)
    assert found.folder is not None
    assert found.tensors is not None
    assert [check.passed for check in check_numbers(found.folder, found.tensors)] == [True]
    file = next(file for file in sorted(path.glob(f"weights-{tp - 1:03}-*")) if QKV in load_file(file))
    tensors = load_file(file)
    tensors[QKV][1, :4] = torch.tensor([0, 0, 0x80, 0x7F])  # a scale's upper bytes: infinity, in fp32 and in bf16
    save_file(tensors, file)
    change_manifest(path, lambda m: m["files"][file.name].update(size=file.stat().st_size))
    found = check_structure(path)
    assert found.folder is not None
    assert found.tensors is not None
    (check,) = check_numbers(found.folder, found.tensors)
    assert not check.passed
    assert f"tensor '{QKV}' is not finite: 1 infinite of" in check.detail
    assert ("rank 1" in check.detail) == (tp == 2)


# --- what cannot be done with packed weights -------------------------------------------------------------------------


def one_line(refusal: pytest.ExceptionInfo[BloomeryError], *fragments: str) -> None:
    said = str(refusal.value)
    assert "\n" not in said
    for fragment in fragments:
        assert fragment in said, said


@pytest.mark.parametrize(("stored", "tp"), [(1, 2), (2, 1), (2, 4)])
def test_a_store_is_read_for_the_ranks_that_it_was_cut_for(
    folder: Folder, tmp_path: Path, stored: int, tp: int
) -> None:
    made = make_store(folder, tmp_path / "store", scheme=INT4, tp=stored)
    with pytest.raises(UsageError) as refusal:
        StoreTensors(made, tp, 0)
    words = f"is a store in int4 that was cut for tp {stored}, and tp {tp} cannot read it: convert the original"
    one_line(refusal, words, str(folder.path), f"--tp {tp}")
    StoreTensors(made, stored, stored - 1)
    if stored > 1:
        with pytest.raises(UsageError, match="tp 1 cannot read it"):
            LLM(made.path)


def test_nothing_is_made_of_rounded_weights(folder: Folder, store: Path, tmp_path: Path) -> None:
    packed = read_folder(store)
    original = f"start from the original, {folder.path}"
    with pytest.raises(UsageError) as refusal:
        origin_of(packed, "x")
    one_line(refusal, "is a store in int4, whose weights have been rounded and cannot be converted", original)
    with pytest.raises(UsageError) as refusal:
        export_folder(packed, tmp_path / "model")
    one_line(refusal, "cannot be exported", original)
    with pytest.raises(UsageError) as refusal:
        describe(ModelShape(start=str(store)))
    one_line(refusal, "cannot be trained", original)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError) as refusal:
        LLM(store, adapter=tmp_path / "adapter")
    one_line(refusal, "cannot take an adapter", original)
    assert not (tmp_path / "model").exists()


def test_another_scheme_than_the_stores_is_refused(folder: Folder, store: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        LLM(store, quant="int8")
    one_line(refusal, f"quant is int8, but {store} is a store in int4", f"the original, {folder.path}")
    with pytest.raises(UsageError, match="did you mean 'int4'"):
        LLM(store, quant="in4")
    ids = list(range(9))
    assert torch.equal(LLM(store, quant="int4").logits(ids), LLM(store).logits(ids))


def test_packing_while_loading_is_said_in_one_line(folder: Folder, store: Path, log: list[str]) -> None:
    LLM(store)
    assert not [line for line in log if "quantized" in line]
    LLM(folder.path, quant="int4")
    (line,) = [line for line in log if "quantized" in line]
    count = sum(weight.scheme is not None for weight in weights(folder.config, INT4).values())
    assert f"quantized {count} linear layers to int4 (groups of 32 inputs, 4.5 bits a weight)" in line


# --- drafts ----------------------------------------------------------------------------------------------------------


def test_a_draft_may_be_packed_and_so_may_the_model(tmp_path: Path) -> None:
    pair = build_pair(tmp_path)
    draft = make_store(read_folder(pair.draft_path), tmp_path / "draft-store", scheme=SCHEMES["int8"]).path
    shutil.copy(pair.draft_path / "tokenizer.json", tmp_path)
    ids, params = list(range(40, 60)), SamplingParams(max_new_tokens=32, ignore_eos=True)
    for model, quant in ((pair.path, "none"), (pair.path, "int4")):
        plain = LLM(model, quant=quant).generate(ids, params)[0]
        drafted = LLM(model, quant=quant, draft=draft).generate(ids, params)[0]
        assert drafted.token_ids == plain.token_ids
        assert drafted.speculation is not None
        assert drafted.speculation.accepted > 0
