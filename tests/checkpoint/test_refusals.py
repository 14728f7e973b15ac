"""A folder that cannot be right is refused in one line that names the file, the tensor and the remedy."""

import json
import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from bloomery.checkpoint.files import MappedFile, PickledFile
from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.errors import CheckpointError
from folders import KINDS, Source

SINGLE = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin", "old-bin": "pytorch_model.bin"}
single_file = pytest.mark.parametrize("kind", SINGLE)
NORM = "transformer.ln_f.weight"


def refused(folder: Path, *fragments: str) -> None:
    """Loading fails in one line that names the folder, says all of this, and ends in advice."""
    with pytest.raises(CheckpointError) as caught:
        load_decoder(read_folder(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    for fragment in fragments:
        assert fragment in message
    assert re.search(r": [a-z][^:]+$", message), f"no advice at the end: {message}"


def fused(source: Source) -> str:
    return next(name for name in source.tensors if name.endswith(("c_attn.weight", "query_key_value.weight")))


@pytest.mark.parametrize("kind", KINDS)
def test_missing_tensor_is_named(source: Source, kind: str) -> None:
    del source.tensors[NORM]
    refused(source.write(kind), "ln_f.weight", "model", "fetch")


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_tensor_is_named(source: Source, kind: str) -> None:
    source.tensors["transformer.h.0.attn.lora_A"] = torch.ones(2)
    refused(source.write(kind), "transformer.h.0.attn.lora_A", "config")


def test_tensors_of_one_layer_more_are_not_dropped(source: Source) -> None:
    source.config["n_layer"] = source.config.get("n_layer", source.config.get("num_hidden_layers")) - 1
    source.config.pop("num_hidden_layers", None)
    refused(source.write(), f"transformer.h.{source.config['n_layer']}.", "config")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [NORM, "transformer.h.0.mlp"])
def test_wrong_shape_is_named_as_it_is_in_the_file(source: Source, kind: str, name: str) -> None:
    name = next(tensor for tensor in source.tensors if tensor.startswith(name) and tensor.endswith("weight"))
    right = list(source.tensors[name].shape)
    source.tensors[name] = torch.zeros(right[0] + 3, *right[1:])
    refused(source.write(kind), name, str([right[0] + 3, *right[1:]]), str(right), "config")


@single_file
def test_matrix_that_lies_the_other_way_round_is_refused(source: Source, kind: str) -> None:
    """GPT-2's [in, out] given as [out, in] has our own shape, but is not yet grouped by heads."""
    name = fused(source)
    source.tensors[name] = source.tensors[name].T.contiguous()
    refused(source.write(kind), name, SINGLE[kind], str(list(source.tensors[name].shape)), "config")


@single_file
def test_tensor_without_dimensions_is_refused(source: Source, kind: str) -> None:
    source.tensors[fused(source)] = torch.tensor(1.0)
    refused(source.write(kind), fused(source), SINGLE[kind], "[]")


@single_file
def test_tensor_of_integers_is_refused(source: Source, kind: str) -> None:
    """Quantized weights without their scales would load as nonsense."""
    source.tensors[fused(source)] = source.tensors[fused(source)].to(torch.int8)
    refused(source.write(kind), fused(source), SINGLE[kind], "int8")


@single_file
def test_same_tensor_twice_is_refused(source: Source, kind: str) -> None:
    source.tensors[NORM.removeprefix("transformer.")] = source.tensors[NORM] + 1
    refused(source.write(kind), "ln_f.weight", SINGLE[kind])


def test_same_tensor_in_two_shards_is_refused(source: Source) -> None:
    folder = source.write("sharded-safetensors")
    other = Source(source.tiny, folder.parent / "other")
    other.tensors[NORM] = other.tensors[NORM] + 1
    shard = sorted(other.write("sharded-safetensors").glob("*00001*"))[0]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["again"] = "more.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shard.rename(folder / "more.safetensors")
    refused(folder, "more.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_tied_head_that_differs_is_refused(source: Source, kind: str, prefix: str) -> None:
    embedding = next(t for name, t in source.tensors.items() if name.endswith(("wte.weight", "word_embeddings.weight")))
    source.tensors[f"{prefix}lm_head.weight"] = embedding + 1
    refused(source.write(kind), "lm_head.weight", "tie_word_embeddings")


def test_unknown_family_is_named(source: Source) -> None:
    source.config["model_type"] = "reformer"
    refused(source.write(), "config.json", "'reformer'", "bloom", "gpt2")


@pytest.mark.parametrize("value", [None, [], {}, 3])
def test_family_that_is_no_name_is_refused(source: Source, value: Any) -> None:
    source.config["model_type"] = value
    refused(source.write(), "config.json", repr(value))


def test_missing_family_is_refused(source: Source) -> None:
    del source.config["model_type"]
    refused(source.write(), "config.json", "model_type")


def test_missing_size_names_the_file(source: Source) -> None:
    del source.config["vocab_size"]
    refused(source.write(), "config.json", "vocab_size")


def test_unsupported_variant_names_the_file(source: Source) -> None:
    source.config |= {"apply_residual_connection_post_layernorm": True, "scale_attn_by_inverse_layer_idx": True}
    refused(source.write(), "config.json", "= True")


@pytest.mark.parametrize("how", [{"quant_method": "gptq", "bits": 4}, {"bits": 4}, "int8"])
def test_quantized_checkpoint_is_refused_as_one(source: Source, how: Any) -> None:
    source.config["quantization_config"] = how
    refused(source.write(), "config.json", "quantized", "take the model in fp32, fp16 or bf16")


def test_attention_that_sees_what_follows_is_refused(source: Source) -> None:
    source.config["is_causal"] = False
    refused(source.write(), "config.json", "is_causal = False")


def test_impossible_shape_names_the_file(source: Source) -> None:
    source.config["n_head"] = 5
    source.config.pop("num_attention_heads", None)
    refused(source.write(), "config.json", "num_heads 5")


def test_missing_config_is_refused(source: Source) -> None:
    folder = source.write()
    (folder / "config.json").unlink()
    refused(folder, "config.json", "does not exist")


@pytest.mark.parametrize("text", [b"", b'{"model_type": "bloom"', b"[1]", b"null", b"\xff\xfe\x00", b"<html>"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_broken_json_is_refused(source: Source, name: str, text: bytes) -> None:
    folder = source.write()
    (folder / name).write_bytes(text)
    refused(folder, name, "fetch")


def test_json_that_is_a_folder_is_refused(source: Source) -> None:
    folder = source.write()
    (folder / "generation_config.json").mkdir()
    refused(folder, "generation_config.json")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": [1]}, {"weight_map": {"a": 3}}])
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_index_without_a_map_is_refused(source: Source, name: str, index: dict[str, Any]) -> None:
    folder = source.write("safetensors" if name.startswith("model") else "bin")
    (folder / name).write_text(json.dumps(index))
    refused(folder, name, "fetch")


@pytest.mark.parametrize("kind", ["sharded-safetensors", "sharded-bin"])
def test_missing_shard_is_named(source: Source, kind: str) -> None:
    folder = source.write(kind)
    shard = sorted(folder.glob("*-00002-of-*"))[0]
    shard.unlink()
    refused(folder, shard.name, "index.json", "fetch")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [0, 5, 100, 0.5, 0.999])
def test_truncated_weights_are_refused(source: Source, kind: str, left: float) -> None:
    folder = source.write(kind)
    file = next(file for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".bin"))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(left * len(whole)) if 0 < left < 1 else int(left)])
    refused(folder, file.name, "fetch")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", [b"junk " * 99, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"])
def test_file_that_holds_no_weights_is_refused(source: Source, name: str, content: bytes) -> None:
    folder = source.write(name.removeprefix("pytorch_model.").removeprefix("model."))
    (folder / name).write_bytes(content)
    refused(folder, name, "fetch")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_a_folder_are_refused(source: Source, name: str) -> None:
    folder = source.write(name.removeprefix("pytorch_model.").removeprefix("model."))
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, name)


def test_folder_without_weights_is_refused(source: Source) -> None:
    folder = source.write()
    (folder / "model.safetensors").unlink()
    refused(folder, "no weights", "model.safetensors", "pytorch_model.bin")


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], torch.ones(2), {"state_dict": {}, "epoch": 3}, {3: torch.ones(2)}]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_bin_of_something_else_than_named_tensors_is_refused(source: Source, content: Any, zipped: bool) -> None:
    folder = source.write("bin")
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    refused(folder, "pytorch_model.bin", "tensors")


class Malicious:
    """Unpickled carelessly, it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("form", ["zip", "old", "bare"])
def test_pickled_code_is_not_run(source: Source, tmp_path: Path, form: str) -> None:
    folder, trace = source.write("bin"), tmp_path / "trace"
    file = folder / "pytorch_model.bin"
    content = {**source.tensors, NORM: Malicious(trace)}
    if form == "bare":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    refused(folder, "pytorch_model.bin", "safetensors")
    assert not trace.exists()
    if form == "zip":  # the trap works: whoever unpickles without care falls into it
        torch.load(file, weights_only=False)
        assert trace.exists()


def test_refusal_never_advises_to_run_pickled_code(source: Source, tmp_path: Path) -> None:
    folder = source.write("bin")
    torch.save({"a": Malicious(tmp_path / "trace")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError) as caught:
        load_decoder(read_folder(folder))
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("key", ["layer_norm_epsilon", "tie_word_embeddings"])
@pytest.mark.parametrize("value", [None, "1e-5", [1], {}, -1])
def test_value_of_another_kind_names_the_file(source: Source, key: str, value: Any) -> None:
    source.config[key] = value
    refused(source.write(), "config.json", f"not {value!r}", "check")


@pytest.mark.parametrize("value", ["2", ["a"], [[2]], {}, 2.5, True])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_end_of_sequence_that_is_no_id_names_the_file(source: Source, name: str, value: Any) -> None:
    folder = source.write()
    (folder / name).write_text(json.dumps((source.config if name == "config.json" else {}) | {"eos_token_id": value}))
    with pytest.raises(CheckpointError, match="eos_token_id") as caught:
        _ = read_folder(folder).eos_ids
    assert str(folder) in str(caught.value)


def test_json_nested_without_end_is_refused(source: Source) -> None:
    folder = source.write()
    (folder / "config.json").write_text("[" * 100_000)
    refused(folder, "config.json", "fetch")


@single_file
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64, torch.float64])
def test_dtype_that_no_model_is_run_in_is_named(source: Source, kind: str, dtype: torch.dtype) -> None:
    if kind == "old-bin" and dtype == torch.float8_e4m3fn:
        pytest.skip("the format is older than fp8")
    source.tensors[fused(source)] = source.tensors[fused(source)].to(dtype)
    refused(source.write(kind), fused(source), SINGLE[kind], str(dtype).removeprefix("torch."), "fp32, fp16 or bf16")


@pytest.mark.parametrize("kind", KINDS)
def test_last_tensor_is_checked_before_the_first_is_read(
    source: Source, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.tensors[NORM] = source.tensors[NORM].to(torch.float64)
    folder = source.write(kind)

    def read(self: object, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")

    for file in (MappedFile, PickledFile):
        monkeypatch.setattr(file, "read", read)
    refused(folder, NORM, "float64")


def test_name_that_no_line_can_show_is_shown_all_the_same(source: Source) -> None:
    source.tensors["transformer.two\nlines\x1b[2J"] = torch.ones(2)
    refused(source.write(), r"transformer.two\nlines\x1b[2J")


LIES = {
    "repeated": lambda tensor: torch.zeros(1).expand(tensor.shape),
    "meta": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")  # torch says of each of these kinds that it may change
@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("kind", ["bin", "old-bin"])
def test_pickled_tensor_that_holds_fewer_numbers_than_it_claims_is_refused(source: Source, kind: str, lie: str) -> None:
    """A few bytes of file would become any amount of memory, or nothing would be loaded at all."""
    source.tensors[fused(source)] = LIES[lie](source.tensors[fused(source)])
    refused(source.write(kind), "pytorch_model.bin", "safetensors")


def test_pickled_storage_beyond_the_file_is_refused(source: Source) -> None:
    """The pickle claims a storage of 2^40 numbers; the record it names has a few."""
    folder = source.write("bin")
    torch.save({NORM: torch.ones(70000)}, folder / "pytorch_model.bin")
    whole = (folder / "pytorch_model.bin").read_bytes()
    claim = struct.pack("<i", 70000)
    assert whole.count(b"J" + claim) == 2  # of the storage, and of the tensor
    (folder / "pytorch_model.bin").write_bytes(whole.replace(b"J" + claim, b"J" + struct.pack("<i", 2**31 - 1)))
    refused(folder, "pytorch_model.bin", "fetch")


def test_a_folder_whose_fetch_was_not_finished_is_refused(source: Source) -> None:
    """It may have everything but the ids that end a text."""
    folder = source.write()
    (folder / ".fetching").write_text(json.dumps({"files": [{"path": "generation_config.json", "size": 9}]}))
    with pytest.raises(CheckpointError, match=r"fetching it was not finished, generation_config\.json is missing"):
        read_folder(folder)
    (folder / "generation_config.json").write_text('{"a": 1}\n')  # of its full size
    assert read_folder(folder).generation == {"a": 1}
