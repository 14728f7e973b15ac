"""Whatever files a model folder has, the decoder is the same; what agrees byte for byte is not copied."""

import sys
from pathlib import Path

import pytest
import torch

from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.model.decoder import Decoder
from drive import assert_parity, one_row, step
from folders import KINDS, Source
from tiny import Tiny

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


def load(folder: Path, dtype: torch.dtype | None = None) -> Decoder:
    return load_decoder(read_folder(folder), dtype)


def assert_same(one: Decoder, other: Decoder) -> None:
    assert one.config == other.config
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert parameter.dtype == theirs[name].dtype
        assert torch.equal(parameter, theirs[name]), name


def assert_answers(decoder: Decoder, tiny: Tiny) -> None:
    ids = tiny.prompt(12)
    cache, row = one_row(decoder, len(ids))
    assert_parity(step(decoder, cache, [row], [ids])[0], tiny.logits(ids))


def mapped(file: Path) -> list[range]:
    """Addresses at which this process maps a file."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [fields[0].split("-") for fields in lines if len(fields) == 6 and fields[5] == str(file.resolve())]
    return [range(int(first, 16), int(last, 16)) for first, last in spans]


def lies_in(file: Path, decoder: Decoder) -> set[str]:
    """Names of the parameters whose numbers are the mapped file's own bytes."""
    spans = mapped(file)
    named = decoder.named_parameters()
    return {name for name, parameter in named if any(parameter.data_ptr() in span for span in spans)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_decoder(source: Source, kind: str) -> None:
    decoder = load(source.write(kind))
    assert_same(decoder, load(source.tiny.path))
    assert_answers(decoder, source.tiny)


def test_untied_head_is_loaded(checkpoint: Tiny) -> None:
    decoder = load(checkpoint.path)
    tied = checkpoint.model.config.tie_word_embeddings
    assert (decoder.head.weight is decoder.embed.tokens.weight) == tied
    assert torch.equal(decoder.head.weight, checkpoint.model.lm_head.weight)


@pytest.mark.parametrize("safetensors", ["safetensors", "sharded-safetensors"])
@pytest.mark.parametrize("pickled", ["bin", "sharded-bin"])
def test_safetensors_win_over_bin(source: Source, safetensors: str, pickled: str) -> None:
    source.write(safetensors)
    source.tensors = {name: torch.zeros_like(tensor) for name, tensor in source.tensors.items()}
    assert_answers(load(source.write(pickled)), source.tiny)


def test_prefix_may_be_missing(source: Source) -> None:
    assert any(name.startswith("transformer.") for name in source.tensors)
    source.tensors = {name.removeprefix("transformer."): tensor for name, tensor in source.tensors.items()}
    assert_same(load(source.write()), load(source.tiny.path))


def test_prefix_may_be_there(source: Source) -> None:
    bare = {name.removeprefix("transformer."): tensor for name, tensor in source.tensors.items()}
    source.tensors = {f"transformer.{name}": tensor for name, tensor in bare.items()}
    assert_same(load(source.write()), load(source.tiny.path))


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_masks_kept_as_buffers_are_no_weights(gpt2_source: Source, prefix: str) -> None:
    for layer in range(gpt2_source.config["n_layer"]):
        gpt2_source.tensors[f"{prefix}h.{layer}.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8).tril()
        gpt2_source.tensors[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    assert_same(load(gpt2_source.write()), load(gpt2_source.tiny.path))


@pytest.mark.parametrize("kind", KINDS)
def test_tied_head_may_be_written_twice(source: Source, kind: str) -> None:
    embedding = next(t for name, t in source.tensors.items() if name.endswith(("wte.weight", "word_embeddings.weight")))
    source.tensors["lm_head.weight"] = embedding.clone()
    decoder = load(source.write(kind))
    assert_same(decoder, load(source.tiny.path))
    assert decoder.head.weight is decoder.embed.tokens.weight


@linux
@pytest.mark.parametrize("kind", ["safetensors", "sharded-safetensors", "bin", "sharded-bin"])
def test_what_agrees_is_used_where_it_is_mapped(source: Source, kind: str) -> None:
    folder = source.write(kind)
    found = read_folder(folder)
    decoder = load_decoder(found)
    in_files = set().union(*(lies_in(file, decoder) for file in found.weights))
    sources = found.family.sources(found.config, dict(decoder.named_parameters()))
    assert in_files == {name for name, row in sources.items() if row.reorder is None}


@linux
def test_a_bloom_is_not_copied_at_all(bloom_source: Source) -> None:
    bloom_source.tensors = {name: tensor.bfloat16() for name, tensor in bloom_source.tensors.items()}
    folder = bloom_source.write()
    decoder = load(folder)
    assert decoder.dtype == torch.bfloat16
    assert lies_in(folder / "model.safetensors", decoder) == {name for name, _ in decoder.named_parameters()}
    copied = load(folder, torch.float32)
    assert lies_in(folder / "model.safetensors", copied) == set()


def test_mapped_weights_outlive_the_file_and_never_reach_it(bloom_source: Source) -> None:
    file = bloom_source.write() / "model.safetensors"
    before = file.read_bytes()
    decoder = load(file.parent)
    decoder.norm.weight.data.fill_(7)
    assert file.read_bytes() == before
    file.unlink()
    assert_same(load(bloom_source.write()), load(bloom_source.tiny.path))
    assert torch.equal(decoder.embed.tokens.weight, load(file.parent).embed.tokens.weight)


def test_files_dtype_is_kept_unless_another_is_asked_for(source: Source) -> None:
    exact = load(source.tiny.path)
    source.tensors = {name: tensor.bfloat16() for name, tensor in source.tensors.items()}
    folder = source.write()
    assert {parameter.dtype for parameter in load(folder).parameters()} == {torch.bfloat16}
    widened = load(folder, torch.float32)
    for (name, parameter), rounded in zip(widened.named_parameters(), exact.parameters(), strict=True):
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, rounded.bfloat16().float()), name
    narrowed = load(source.tiny.path, torch.bfloat16)
    assert_same(narrowed, load(folder))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_fp16_runs_as_fp32_on_a_cpu_and_says_so(source: Source, kind: str, log: list[str]) -> None:
    source.tensors = {name: tensor.half() for name, tensor in source.tensors.items()}
    folder = source.write(kind)
    decoder = load(folder)
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float32}
    assert any("fp16" in line and "fp32" in line for line in log)
    assert {parameter.dtype for parameter in load(folder, torch.float16).parameters()} == {torch.float16}


def test_other_dtypes_are_loaded_without_a_word(source: Source, log: list[str]) -> None:
    load(source.write())
    assert log == []


def test_old_format_is_read_whole_and_says_so(source: Source, log: list[str]) -> None:
    folder = source.write("old-bin")
    load(folder)
    assert len(log) == 1
    assert str(folder / "pytorch_model.bin") in log[0]


def test_loaded_decoder_asks_for_no_gradient(source: Source) -> None:
    decoder = load(source.write())
    assert not decoder.training
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


def test_parameters_of_a_training_run_are_loaded_from_bin(source: Source) -> None:
    """Some old files hold `Parameter` objects, which want gradients."""
    source.tensors = {name: torch.nn.Parameter(tensor) for name, tensor in source.tensors.items()}
    decoder = load(source.write("bin"))
    assert not any(parameter.requires_grad for parameter in decoder.parameters())
    assert all(parameter.is_leaf for parameter in decoder.parameters())
    assert_same(decoder, load(source.tiny.path))


def test_eos_and_tokenizer_of_a_folder(source: Source) -> None:
    folder = source.write()
    assert read_folder(folder).eos_ids == ()
    assert read_folder(folder).tokenizer is None
    source.config["eos_token_id"] = 5
    assert read_folder(source.write()).eos_ids == (5,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    (folder / "tokenizer.json").write_text("{}")
    assert read_folder(folder).eos_ids == (2, 3)
    assert read_folder(folder).tokenizer == folder / "tokenizer.json"
