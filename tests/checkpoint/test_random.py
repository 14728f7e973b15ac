"""Random models: numbers follow from seed and name, are those that training begins with, and make a model that talks,
in memory and in a store alike."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bloomery import LLM, SamplingParams
from bloomery.checkpoint import random
from bloomery.checkpoint.convert import convert
from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.checkpoint.random import BLOCK, RandomTensors, random_folder
from bloomery.checkpoint.random_origin import random_origin
from bloomery.errors import CheckpointError, UsageError
from bloomery.families import FAMILIES
from bloomery.families.shapes import SHAPES
from bloomery.model.config import DecoderConfig
from bloomery.model.decoder import Decoder
from bloomery.model.init import init_decoder_
from bloomery.model.layout import shapes
from bloomery.text.bytewise import END_ID
from tiny import Tiny

TINY = {
    "model_type": "bloom",
    "vocab_size": 500,
    "n_embed": 64,
    "n_layer": 2,
    "num_attention_heads": 4,
    "seq_length": 128,
}
MATRIX = "blocks.1.mlp.up.weight"
PARAMS = SamplingParams(max_new_tokens=8, temperature=1.0, seed=1)


def config_of(raw: dict[str, Any]) -> DecoderConfig:
    return FAMILIES[raw["model_type"]].to_config(raw)


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    (tmp_path / "shape.json").write_text(json.dumps(TINY))
    return tmp_path / "shape.json"


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers_follow_from_seed_and_name_alone() -> None:
    config = config_of(TINY)
    one, deeper = RandomTensors(config, 1), RandomTensors(config_of(TINY | {"n_embed": 64, "vocab_size": 600}), 1)
    first = {name: one.read(name) for name in shapes(config)}
    for name in reversed(first):
        assert torch.equal(RandomTensors(config, 1).read(name), first[name]), name
    assert torch.equal(deeper.read("embed.tokens.weight")[:500], first["embed.tokens.weight"])
    assert not torch.equal(RandomTensors(config, 2).read(MATRIX), first[MATRIX])
    assert not torch.equal(one.read(MATRIX), one.read(MATRIX.replace("1", "0")))


def test_a_tensor_that_was_changed_is_read_unchanged() -> None:
    tensors = RandomTensors(config_of(TINY))
    for name in ("norm.weight", MATRIX):
        before = tensors.read(name).clone()
        tensors.read(name).fill_(7)
        assert torch.equal(tensors.read(name), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kind_is_known_before_it_is_read(dtype: torch.dtype) -> None:
    tensors = RandomTensors(config_of(TINY), 0, dtype)
    for name, expected in shapes(config_of(TINY)).items():
        tensor = tensors.read(name)
        assert tensors.kind(name) == (tensor.dtype, tuple(tensor.shape)) == (dtype, tuple(expected.shape))
    exact = RandomTensors(config_of(TINY), 0, torch.float32).read(MATRIX)
    assert torch.equal(tensors.read(MATRIX), exact.to(dtype))


def test_they_are_those_that_training_begins_with(checkpoint: Tiny) -> None:
    """Constant where those are, and else of the same deviation, in every family."""
    config = read_folder(checkpoint.path).config
    decoder = Decoder(config)
    init_decoder_(decoder, 0)
    tensors = RandomTensors(config, 0, torch.float32)
    for name, expected in decoder.named_parameters():
        tensor = tensors.read(name)
        if expected.min() == expected.max():
            assert torch.equal(tensor, expected), name
        else:
            spread = 6 / math.sqrt(2 * tensor.numel())  # six deviations of a measured deviation
            assert tensor.std() == pytest.approx(expected.std().item(), rel=2 * spread), name
            assert abs(tensor.mean()) < 6 * tensor.std() / math.sqrt(tensor.numel()), name


def test_tensor_larger_than_a_block_goes_on_from_its_beginning() -> None:
    """Also the largest published: no two rows are the same, since a prime number of numbers repeats."""
    config = config_of(TINY | {"vocab_size": 100_000})
    tensor = RandomTensors(config, 3, torch.float32).read("embed.tokens.weight")
    flat = tensor.view(-1)
    assert len(flat) > BLOCK
    assert torch.equal(flat[BLOCK:], flat[: len(flat) - BLOCK])
    assert len(torch.unique(tensor[:, :4], dim=0)) == len(tensor)
    assert all(BLOCK % factor for factor in range(2, math.isqrt(BLOCK) + 1))
    assert all(raw["vocab_size"] < BLOCK for raw in SHAPES.values())


def test_logits_are_neither_flat_nor_certain(checkpoint: Tiny) -> None:
    """As of a model before its first step."""
    folder = checkpoint.path
    llm = LLM(shape=folder, dtype="float32", device="cpu")
    assert llm.folder.config == read_folder(folder).config
    logits = llm.logits(checkpoint.prompt(40))
    assert logits.isfinite().all()
    assert 0.01 < logits.std() < 5


# --- a model in memory -----------------------------------------------------------------------------------------------


def said(**options: Any) -> str:
    return LLM(device="cpu", **options).generate("Any text ☃", PARAMS)[0].text


def test_model_of_a_shape_talks_and_says_the_same_for_a_seed(shape: Path) -> None:
    first = said(shape=shape)
    assert len(first) >= 8
    assert said(shape=shape, seed=0) == first
    assert said(shape=str(shape), seed=1) != first


def test_published_shape_is_known_by_name() -> None:
    folder = random_folder("bloom-560m", 3)
    assert folder.config == config_of(SHAPES["bloom-560m"])
    assert folder.eos_ids == (END_ID,)
    assert folder.tokenizer is None
    assert folder.seeded == (3, "bfloat16")


def test_folder_with_a_config_is_a_shape(shape: Path) -> None:
    shape.rename(shape.parent / "config.json")
    assert random_folder(shape.parent).config == config_of(TINY)


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_dtype_is_bfloat16_unless_another_is_asked_for(shape: Path, dtype: str, expected: torch.dtype) -> None:
    llm = LLM(shape=shape, dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in llm.decoder.parameters()} == {expected}


def test_vocabulary_too_small_for_bytes_works_on_ids(shape: Path) -> None:
    shape.write_text(json.dumps(TINY | {"vocab_size": 256}))
    llm = LLM(shape=shape, device="cpu")
    assert llm.tokenizer is None
    assert llm.folder.eos_ids == ()
    assert len(llm.generate([3, 1, 4], PARAMS)[0].token_ids) == 8
    with pytest.raises(UsageError, match="give token ids"):
        llm.generate("text")


def test_code_that_a_shape_asks_for_is_not_kept(shape: Path) -> None:
    shape.write_text(json.dumps(TINY | {"auto_map": {"AutoConfig": "evil.Config"}, "torch_dtype": "float64"}))
    raw = random_folder(shape).raw
    assert "auto_map" not in raw
    assert (raw["dtype"], raw["eos_token_id"]) == ("bfloat16", END_ID)
    assert "torch_dtype" not in raw


@pytest.mark.parametrize(
    ("name", "hint"), [("bloom-56m", "'bloom-560m'"), ("no such thing", "llama-3.1-8b"), ("", "bloom-7b1")]
)
def test_unknown_shape_is_refused_with_those_that_there_are(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        random_folder(name)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"model_type": "reformer"}', '{"model_type": "bloom"}'])
def test_shape_that_describes_no_model_names_the_file(shape: Path, content: str) -> None:
    shape.write_text(content)
    with pytest.raises(CheckpointError) as caught:
        random_folder(shape)
    assert str(shape) in str(caught.value)


def test_what_does_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "memory_left", lambda device: 24_000_000_000)
    monkeypatch.setattr(RandomTensors, "read", lambda self, name: pytest.fail("was made"))
    with pytest.raises(UsageError) as caught:
        LLM(shape="bloom-176b", device="cpu")
    message = str(caught.value)
    assert "bloom-176b" in message
    assert "352.5 GB" in message
    assert "24.0 GB" in message
    assert "\n" not in message


@pytest.mark.parametrize("left", [None, 10**12])
def test_what_fits_or_cannot_be_known_is_made(shape: Path, monkeypatch: pytest.MonkeyPatch, left: int | None) -> None:
    monkeypatch.setattr(random, "memory_left", lambda device: left)
    LLM(shape=shape, device="cpu")


@pytest.mark.parametrize(
    "options", [{"model": "elsewhere", "shape": "gpt2"}, {"shape": "gpt2", "revision": "main"}, {"seed": 3}], ids=str
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        LLM(**options)


# --- a store ---------------------------------------------------------------------------------------------------------


def test_store_of_a_shape_is_the_same_model(shape: Path, tmp_path: Path) -> None:
    done = convert(random_origin(shape, 5), tmp_path / "store")
    assert done.manifest.source.name == f"random {shape}, seed 5"
    stored = LLM(tmp_path / "store", device="cpu")
    made = LLM(shape=shape, seed=5, device="cpu")
    for (name, ours), other in zip(made.decoder.named_parameters(), stored.decoder.parameters(), strict=True):
        assert torch.equal(ours, other), name
    assert stored.folder.eos_ids == made.folder.eos_ids == (END_ID,)
    assert stored.generate("Any text ☃", PARAMS)[0].text == made.generate("Any text ☃", PARAMS)[0].text


def test_store_is_the_same_from_several_processes(tmp_path: Path, shape: Path) -> None:
    for jobs in (1, 2):
        convert(random_origin(shape, 5), tmp_path / str(jobs), jobs=jobs, file_bytes=50_000)
    one, two = (load_decoder(read_folder(tmp_path / jobs)) for jobs in "12")
    for ours, other in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(ours, other)


def test_store_of_a_small_vocabulary_has_no_tokenizer(tmp_path: Path, shape: Path) -> None:
    shape.write_text(json.dumps(TINY | {"vocab_size": 99}))
    convert(random_origin(shape), tmp_path / "store")
    assert read_folder(tmp_path / "store").tokenizer is None
