"""Checkpoints in the form in which they were published, which is not that in which transformers writes them today."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.errors import CheckpointError
from drive import assert_parity, load, one_row, step
from folders import Source
from tiny import Tiny

Published = Callable[[Source], Path]


def without_prefix(source: Source) -> None:
    source.tensors = {
        name.removeprefix("transformer.").removeprefix("model."): tensor for name, tensor in source.tensors.items()
    }


def with_masks(source: Source, dtype: torch.dtype) -> None:
    """The causal mask, which GPT-2 and StarCoder kept as a buffer in every layer."""
    prefix = "transformer." if any(name.startswith("transformer.") for name in source.tensors) else ""
    for layer in range(source.config["n_layer"]):
        source.tensors[f"{prefix}h.{layer}.attn.bias"] = torch.ones(1, 1, 320, 320).tril().to(dtype)
        source.tensors[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)


def with_inv_freq(source: Source, name: str) -> None:
    for layer in range(source.config["num_hidden_layers"]):
        source.tensors[name.format(i=layer)] = torch.rand(4)


def with_tied_copy(source: Source) -> None:
    names = ("wte.weight", "word_embeddings.weight", "embed_tokens.weight")
    (embedding,) = [tensor for name, tensor in source.tensors.items() if name.endswith(names)]
    source.tensors["lm_head.weight"] = embedding.clone()


def in_old_words(source: Source, renamed: dict[str, str]) -> None:
    config = {renamed.get(key, key): value for key, value in source.config.items()}
    config["torch_dtype"] = config.pop("dtype")
    if rope := config.pop("rope_parameters", None):
        kind = rope.pop("rope_type")
        config |= {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        config["rope_scaling"] = {"type" if kind == "linear" else "rope_type": kind} | rope if rope else None
    source.config = config


def half(source: Source) -> None:
    source.tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in source.tensors.items()
    }
    source.config["torch_dtype"] = "float16"


def bloom_560m(source: Source) -> Path:
    without_prefix(source)
    in_old_words(source, {"hidden_size": "n_embed", "n_head": "num_attention_heads"})
    return source.write()


def bloom_176b(source: Source) -> Path:
    without_prefix(source)
    in_old_words(source, {"hidden_size": "n_embed", "n_head": "num_attention_heads"})
    half(source)
    return source.write("sharded-bin")


def gpt2(source: Source) -> Path:
    without_prefix(source)
    with_masks(source, torch.float32)
    in_old_words(source, {})
    source.config |= {"n_ctx": source.config["n_positions"], "summary_type": "cls_index"}
    return source.write("bin")


def starcoder(source: Source) -> Path:
    with_masks(source, torch.bool)
    with_tied_copy(source)
    in_old_words(source, {})
    source.config |= {"validate_runner_input": True, "inference_runner": 0}
    return source.write("sharded-bin")


def llama_2(source: Source) -> Path:
    with_inv_freq(source, "model.layers.{i}.self_attn.rotary_emb.inv_freq")
    in_old_words(source, {})
    source.config |= {"pretraining_tp": 1, "rope_scaling": None}
    half(source)
    return source.write("sharded-safetensors")


def llama_3(source: Source) -> Path:
    in_old_words(source, {})
    with_tied_copy(source)
    return source.write("sharded-safetensors")


def falcon(source: Source) -> Path:
    with_tied_copy(source)
    in_old_words(source, {})
    source.config |= {"auto_map": {"AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM"}}
    (source.folder / "modeling_falcon.py").write_text("raise SystemExit('code of a checkpoint was run')")
    return source.write("sharded-bin")


def phi_2(source: Source) -> Path:
    with_inv_freq(source, "model.layers.{i}.self_attn.rotary_emb.inv_freq")
    in_old_words(source, {})
    half(source)
    return source.write("sharded-safetensors")


def mixtral(source: Source) -> Path:
    assert any(".block_sparse_moe.experts.3.w2.weight" in name for name in source.tensors)
    in_old_words(source, {})
    return source.write("sharded-safetensors")


FORMS = [
    ("bloom-6-heads", bloom_560m),
    ("bloom-8-heads", bloom_176b),
    ("gpt2-tanh", gpt2),
    ("starcoder-multi-query", starcoder),
    ("llama-multi-head", llama_2),
    ("llama-grouped-scaled", llama_3),
    ("llama-biased-linear", llama_2),
    ("mistral-window", phi_2),  # inv_freq, halves, old words
    ("mixtral-2-of-4", mixtral),
    ("falcon-40b-like", falcon),
    ("falcon-rw-like", falcon),
    ("phi-partial", phi_2),
]


@pytest.mark.parametrize(("name", "publish"), FORMS)
@torch.inference_mode()
def test_published_form_answers_as_transformers_reads_it(
    tiny: Callable[[str], Tiny], name: str, publish: Published, tmp_path: Path
) -> None:
    source = Source(tiny(name), tmp_path / "model")
    source.folder.mkdir()
    folder = publish(source)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = source.tiny.prompt(150)
    decoder = load(folder)
    cache, row = one_row(decoder, len(ids))
    assert_parity(step(decoder, cache, [row], [ids])[0], theirs(torch.tensor([ids])).logits[0])


@pytest.mark.parametrize("name", ["starcoder-multi-query", "llama-grouped-scaled", "falcon-40b-like"])
def test_tied_copy_that_differs_is_refused(tiny: Callable[[str], Tiny], name: str, tmp_path: Path) -> None:
    source = Source(tiny(name), tmp_path / "model")
    with_tied_copy(source)
    source.tensors["lm_head.weight"][3, 5] += 1
    folder = source.write("sharded-safetensors")
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' differs from the embedding"):
        load_decoder(read_folder(folder))
