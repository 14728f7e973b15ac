"""What peft wrote is read whole and fits the model, or is refused in one line; what it leaves alone stays mapped."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from adapted import MODULES, TABLE, Adapted, adapt, fresh, kind, load, lora, prefix, prompt, quiet
from bloomery.checkpoint.adapter import Adapter, read_adapter
from bloomery.checkpoint.convert import convert
from bloomery.checkpoint.folder import Folder, read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.checkpoint.merge import MergedTensors
from bloomery.checkpoint.origin import origin_of
from bloomery.checkpoint.tensors import FolderTensors
from bloomery.errors import CheckpointError
from bloomery.model.decoder import Decoder
from bloomery.model.layout import shapes
from drive import assert_parity, one_row, step
from folders import Source
from tiny import Tiny

C_ATTN = "base_model.model.transformer.h.0.attn.c_attn"
LLAMA = "llama-grouped-scaled"
Make = Callable[[str, str], Adapted]


@pytest.fixture
def make(tiny: Callable[[str], Tiny], tmp_path: Path) -> Make:
    return lambda base, name: kind(tiny(base), tmp_path / "adapter", name)


@pytest.fixture
def on_gpt2(make: Make) -> Adapted:
    return make("gpt2-tanh", "lora")


def read(adapted: Adapted, base: Path | None = None) -> tuple[Folder, Adapter]:
    folder = read_folder(base or adapted.tiny.path)
    return folder, read_adapter(adapted.path, folder)


def merged(adapted: Adapted, dtype: torch.dtype | None = None, base: Path | None = None) -> Decoder:
    folder, adapter = read(adapted, base)
    return load_decoder(folder, dtype, adapter=adapter)


def assert_same(one: Decoder, other: Decoder) -> None:
    theirs = dict(other.named_parameters())
    assert all(torch.equal(parameter, theirs.pop(name)) for name, parameter in one.named_parameters())
    assert not theirs


def assert_answers(decoder: Decoder, adapted: Adapted, highest: int | None = None) -> None:
    ids = adapted.tiny.prompt(30) + ([] if highest is None else [highest])
    cache, row = one_row(decoder, len(ids))
    assert_parity(step(decoder, cache, [row], [ids])[0], adapted.logits(ids))


def refused(adapted: Adapted, *fragments: str) -> None:
    """Reading fails in one line that names the adapter, says all of this, and ends in advice."""
    with pytest.raises(CheckpointError) as caught:
        read(adapted)
    message = str(caught.value)
    assert "\n" not in message
    assert str(adapted.path) in message
    for fragment in fragments:
        assert fragment in message
    assert re.search(r": [a-z][^:]+$", message), f"no advice at the end: {message}"


# --- what is read ----------------------------------------------------------------------------------------------------


def test_pickled_weights_are_read_too(on_gpt2: Adapted) -> None:
    expected = merged(on_gpt2)
    weights = on_gpt2.path / "adapter_model.safetensors"
    torch.save(load_file(weights), on_gpt2.path / "adapter_model.bin")
    weights.unlink()
    assert_same(merged(on_gpt2), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_computed_in_fp32(on_gpt2: Adapted, dtype: torch.dtype) -> None:
    on_gpt2.tensors(lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()}))
    assert_answers(merged(on_gpt2), Adapted(on_gpt2.tiny, on_gpt2.path, load(on_gpt2.tiny, on_gpt2.path)))


@pytest.mark.parametrize("base", ["bloom-6-heads", "gpt2-tanh", LLAMA])
def test_names_of_a_model_without_a_head_are_known(make: Make, tiny: Callable[[str], Tiny], base: str) -> None:
    """As an adapter has them that was trained on AutoModel."""
    adapted = make(base, "lora")
    expected = merged(adapted)
    prefix = "base_model.model." + ("model." if base == LLAMA else "transformer.")

    def shorten(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors["base_model.model." + name.removeprefix(prefix)] = tensors.pop(name)

    adapted.tensors(shorten)
    assert_same(merged(adapted), expected)


def test_magnitudes_may_be_spelled_as_in_a_newer_peft(make: Make) -> None:
    adapted = make("gpt2-tanh", "dora")
    expected = merged(adapted)

    def spell(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("magnitude_vector")]:
            tensors[name + ".weight"] = tensors.pop(name)

    adapted.tensors(spell)
    assert_same(merged(adapted), expected)


def test_saved_masks_are_no_weights(on_gpt2: Adapted) -> None:
    expected = merged(on_gpt2)
    on_gpt2.config(bias="all")
    on_gpt2.tensors(lambda tensors: tensors.update({C_ATTN.replace("c_attn", "bias"): torch.ones(1, 1, 4, 4)}))
    assert_same(merged(on_gpt2), expected)


def test_experts_of_their_own_are_known_by_their_published_names(tiny: Callable[[str], Tiny], tmp_path: Path) -> None:
    """As adapters have them that are older than transformers 5, where the experts of a layer are one tensor."""
    base = tiny("mixtral-2-of-4")
    adapted = adapt(base, tmp_path, lora(MODULES["mixtral"]))
    generator = torch.Generator().manual_seed(0)

    def add_experts(tensors: dict[str, Tensor]) -> None:
        shapes = {"w1": (128, 64), "w3": (128, 64), "w2": (64, 128)}
        moe = "base_model.model.model.layers.{}.block_sparse_moe."
        names = {moe + "experts.{}." + w: shape for w, shape in shapes.items()} | {moe + "gate": (4, 64)}
        for pattern, (out, width) in names.items():
            for layer in range(2):
                for expert in range(4 if pattern.count("{}") == 2 else 1):
                    name = pattern.format(layer, expert)
                    tensors[f"{name}.lora_A.weight"] = 0.1 * torch.randn(4, width, generator=generator)
                    tensors[f"{name}.lora_B.weight"] = 0.1 * torch.randn(out, 4, generator=generator)

    adapted.tensors(add_experts)
    adapted.config(target_modules=[*MODULES["mixtral"], "w1", "w2", "w3", "gate"])
    assert_answers(merged(adapted), Adapted(base, tmp_path, load(base, tmp_path)))


# --- how it is merged ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["gpt2-tanh", LLAMA])
def test_weights_of_half_precision_are_rounded_once(make: Make, tmp_path: Path, base: str) -> None:
    """Against peft's own merging in fp32; a sum in another order may round the other way, and by one step only."""
    adapted = make(base, "dora")
    source = Source(adapted.tiny, tmp_path / "half")
    source.tensors = {name: tensor.bfloat16() for name, tensor in source.tensors.items()}
    folder = source.write()
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = load(adapted.tiny, adapted.path, base=theirs).merge_and_unload()
    theirs.save_pretrained(tmp_path / "merged")
    exact = load_decoder(read_folder(tmp_path / "merged"))
    wide, narrow = merged(adapted, torch.float32, folder), merged(adapted, None, folder)
    assert (wide.dtype, narrow.dtype) == (torch.float32, torch.bfloat16)
    others = dict(wide.named_parameters()) | {}
    for (name, expected), got in zip(exact.named_parameters(), narrow.parameters(), strict=True):
        assert torch.allclose(others[name], expected, rtol=1e-6, atol=1e-6), name  # not rounded on the way
        assert torch.allclose(got.float(), expected.bfloat16().float(), rtol=2**-7, atol=1e-6), name
        assert (got == expected.bfloat16()).float().mean() > 0.999, name


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_what_is_left_alone_is_used_where_it_is_mapped(make: Make) -> None:
    adapted = make("bloom-6-heads", "one-layer")
    decoder = merged(adapted)
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    file = str((adapted.tiny.path / "model.safetensors").resolve())
    spans = [fields[0].split("-") for fields in lines if len(fields) == 6 and fields[5].strip() == file]
    ranges = [range(int(first, 16), int(last, 16)) for first, last in spans]
    apart = {name for name, p in decoder.named_parameters() if not any(p.data_ptr() in span for span in ranges)}
    changed = ("attn.qkv", "attn.out", "mlp.up", "mlp.down")
    assert apart == {f"blocks.1.{name}.weight" for name in changed}


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("base", ["gpt2-tanh", LLAMA])
def test_a_store_is_merged_like_the_folder_that_it_was_made_from(
    make: Make, tmp_path: Path, base: str, tp: int
) -> None:
    adapted = make(base, "dora-embedding")
    convert(origin_of(read_folder(adapted.tiny.path), "tiny"), tmp_path / "store", tp=tp)
    assert_same(merged(adapted, base=tmp_path / "store"), merged(adapted))


def test_sum_that_is_too_large_is_refused(on_gpt2: Adapted) -> None:
    on_gpt2.config(lora_alpha=1e6)
    merged(on_gpt2, torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"adapter: tensor 'blocks.*', merged: .* too large for float16") as said:
        merged(on_gpt2, torch.float16)
    assert "\n" not in str(said.value)


def test_one_embedding_serves_twice_as_long_as_it_can(make: Make) -> None:
    for name, tied in (("lora", True), ("tokens", True), ("lora-head", False), ("tied-lora", True)):
        decoder = merged(make(LLAMA, name))
        assert (decoder.head.weight is decoder.embed.tokens.weight) == tied, name


def test_tensors_are_known_before_they_are_read(make: Make) -> None:
    adapted = make(LLAMA, "saved-head")
    folder, adapter = read(adapted)
    tensors = MergedTensors(FolderTensors(folder, shapes(folder.config)), folder, adapter, torch.bfloat16)
    changed = {name for name in tensors.shapes if tensors.kind(name).dtype == torch.bfloat16}
    assert {"head.weight", "blocks.0.attn.qkv.weight", "blocks.1.mlp.down.weight"} <= changed
    assert not {"embed.tokens.weight", "norm.weight", "blocks.0.mlp.gate.weight"} & changed
    for name in shapes(adapter.config):
        tensor = tensors.read(name)
        assert (tensor.dtype, tuple(tensor.shape)) == tensors.kind(name)
        tensors.release(name)


GROWN: dict[str, Callable[[tuple[str, ...], str], Any]] = {
    "saved-both": lambda m, table: lora(m, modules_to_save=[table, "lm_head"]),
    "saved-embedding": lambda m, table: lora(m, modules_to_save=[table]),
    "on-the-embedding": lambda m, table: lora((*m, table)),
    "beside-it": lambda m, _: lora(m),
    "tokens": lambda m, _: lora(m, trainable_token_indices=[3, 5]),
}
"""In each of them peft saves the grown embedding under another name."""


@pytest.mark.parametrize("kind", GROWN)
@pytest.mark.parametrize("base", [LLAMA, "gpt2-relu-untied"])
def test_a_vocabulary_that_grew_comes_with_the_adapter(
    tiny: Callable[[str], Tiny], tmp_path: Path, base: str, kind: str
) -> None:
    small = tiny(base)
    with quiet():
        model = fresh(small)
        size = model.config.vocab_size + 3
        model.resize_token_embeddings(size)
        family = small.shape.family
        adapted = adapt(small, tmp_path, GROWN[kind](MODULES[family], TABLE[family]), base=model)
    decoder = merged(adapted)
    assert decoder.config.vocab_size == size
    if kind == "beside-it":
        assert (decoder.head.weight is decoder.embed.tokens.weight) == small.model.config.tie_word_embeddings
    assert_answers(decoder, adapted, highest=size - 1)


# --- what is said ----------------------------------------------------------------------------------------------------


def test_what_was_merged_is_said(on_gpt2: Adapted, log: list[str]) -> None:
    read(on_gpt2)
    assert log == [f"adapter {on_gpt2.path}: LORA, merged into 12 tensors"]  # 3 layers of 4 matrices


def test_virtual_tokens_are_said(make: Make, log: list[str]) -> None:
    adapted = make("gpt2-tanh", "prefix")
    read(adapted)
    assert log == [f"adapter {adapted.path}: PREFIX_TUNING, 9 virtual tokens before every text"]


def test_a_head_that_comes_apart_is_said(make: Make, log: list[str]) -> None:
    read(make("gpt2-tanh", "lora-head"))
    assert any("apart" in line for line in log)


def test_another_base_is_said(on_gpt2: Adapted, log: list[str]) -> None:
    on_gpt2.config(base_model_name_or_path="somewhere/gpt2-large")
    read(on_gpt2)
    assert any("somewhere/gpt2-large" in line and str(on_gpt2.tiny.path) in line for line in log)


def test_words_of_a_newer_peft_are_said(on_gpt2: Adapted, log: list[str]) -> None:
    on_gpt2.config(warp_factor=9, something_off=False)
    read(on_gpt2)
    assert any("warp_factor" in line and "something_off" not in line for line in log)


def test_every_word_of_todays_peft_is_known(make: Make, log: list[str]) -> None:
    for name in ("patterns", "all-biases", "tokens", "ia3", "prompt", "p-tuning", "projected-prefix"):
        read(make("bloom-6-heads", name))
    assert not any("means nothing" in line for line in log)


def test_an_adapters_own_tokenizer_is_found(on_gpt2: Adapted, log: list[str]) -> None:
    assert read(on_gpt2)[1].tokenizer is None
    (on_gpt2.path / "tokenizer.json").write_text("{}")
    assert read(on_gpt2)[1].tokenizer == on_gpt2.path / "tokenizer.json"
    assert any("tokenizer.json" in line for line in log)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"peft_type": None}, "None"),
        ({"peft_type": ["LORA"]}, "LORA"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"target_parameters": ["gate.weight"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"use_qalora": True}, "use_qalora"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "OLoRA"}, "olora"),
        ({"r": 5}, "rank 5"),
        ({"r": "4"}, "'4'"),
        ({"r": 0}, "r is 0"),
        ({"rank_pattern": {"c_attn": 3}}, "rank 3"),
        ({"rank_pattern": {"(": 3}}, "rank_pattern"),
        ({"rank_pattern": [3]}, "rank_pattern"),
        ({"lora_alpha": "much"}, "much"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"modules_to_save": "lm_head"}, "modules_to_save"),
    ],
)
def test_configuration_that_cannot_be_is_refused(on_gpt2: Adapted, changes: dict[str, Any], said: str) -> None:
    on_gpt2.config(**changes)
    refused(on_gpt2, said)


def _rename(before: str, after: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.__setitem__(after, tensors.pop(before))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(f"{C_ATTN}.lora_B.weight"), "h.0.attn.c_attn.lora_A.weight"),
        (lambda tensors: tensors.update({f"{C_ATTN}.lora_E": torch.ones(2)}), "lora_E"),
        (lambda tensors: tensors.update({f"{C_ATTN}.lora_magnitude_vector": torch.ones(192)}), "lora_magnitude_vector"),
        (lambda tensors: tensors.update({f"{C_ATTN}.ia3_l": torch.ones(192, 1)}), "ia3_l"),
        (lambda tensors: tensors.update({"score.weight": torch.ones(2, 64)}), "score.weight"),
        (lambda tensors: tensors.update({"base_model.model.score.weight": torch.ones(2, 64)}), "score.weight"),
        (lambda tensors: tensors.update({"base_model.model.h.0.ln_1.weight": torch.ones(65)}), "ln_1.weight"),
        (lambda tensors: tensors.update({f"{C_ATTN}.lora_A.weight": torch.ones(4, 65)}), "c_attn"),
        (lambda tensors: tensors.update({f"{C_ATTN}.lora_A.weight": torch.ones(4)}), "c_attn"),
        (lambda tensors: tensors.update({f"{C_ATTN}.lora_A.weight": torch.full((4, 64), torch.nan)}), "not finite"),
        (lambda tensors: tensors.update({f"{C_ATTN}.lora_A.weight": torch.ones(4, 64).long()}), "int64"),
        (lambda tensors: tensors.update({C_ATTN.replace(".0.", ".9.") + ".bias": torch.ones(192)}), "h.9.attn"),
        (
            lambda tensors: tensors.update(
                {f"base_model.model.{way}h.0.ln_1.weight": torch.ones(64) for way in ("", "transformer.")}
            ),
            "ln_1",
        ),
    ],
)
def test_tensor_that_cannot_be_is_named(
    on_gpt2: Adapted, change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    on_gpt2.tensors(change)
    refused(on_gpt2, said)


def test_adapter_of_another_shape_is_refused(make: Make, tiny: Callable[[str], Tiny]) -> None:
    adapted = make("gpt2-tanh", "lora")
    refused(Adapted(tiny("gpt2-gelu"), adapted.path, adapted.model), "trained on")


def test_adapter_of_another_family_is_refused(make: Make, tiny: Callable[[str], Tiny]) -> None:
    adapted = make("gpt2-tanh", "lora")
    refused(Adapted(tiny("bloom-6-heads"), adapted.path, adapted.model), "a bloom of 3 layers does not have")


def test_adapter_of_more_layers_is_refused(make: Make, tiny: Callable[[str], Tiny]) -> None:
    on_three = make("gpt2-tanh", "lora")
    on_three.tensors(lambda tensors: [tensors.pop(name) for name in list(tensors) if ".h.2." not in name])
    folder = json.loads((on_three.tiny.path / "config.json").read_text())
    assert folder["n_layer"] == 3
    on_three.tensors(
        _rename(C_ATTN.replace(".0.", ".2.") + ".lora_A.weight", C_ATTN.replace(".0.", ".3.") + ".lora_A.weight")
    )
    on_three.tensors(
        _rename(C_ATTN.replace(".0.", ".2.") + ".lora_B.weight", C_ATTN.replace(".0.", ".3.") + ".lora_B.weight")
    )
    refused(on_three, "h.3.attn.c_attn", "3 layers")


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_virtual_tokens_of_another_shape_are_refused(make: Make, tiny: Callable[[str], Tiny], name: str) -> None:
    adapted = make("gpt2-tanh", name)
    refused(Adapted(tiny("gpt2-gelu"), adapted.path, adapted.model), "virtual tokens", "trained on")


def test_keys_for_another_number_of_heads_are_refused(tiny: Callable[[str], Tiny], tmp_path: Path) -> None:
    adapted = adapt(tiny("gpt2-tanh"), tmp_path, prefix(9))
    adapted.config(num_attention_heads=2)
    refused(adapted, "2 heads", "the model 4")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_rename("prompt_embeddings", "prefix_embeddings"), "prefix_embeddings"),
        (lambda tensors: tensors.update({"prefix_task_cols": torch.ones(2)}), "prefix_task_cols"),
    ],
)
def test_surplus_beside_virtual_tokens_is_named(
    tiny: Callable[[str], Tiny], tmp_path: Path, change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    adapted = adapt(tiny("gpt2-tanh"), tmp_path, prompt(5))
    adapted.tensors(change)
    refused(adapted, said, "prompt_embeddings")


def test_count_of_virtual_tokens_must_agree(tiny: Callable[[str], Tiny], tmp_path: Path) -> None:
    adapted = adapt(tiny("gpt2-tanh"), tmp_path, prompt(5))
    adapted.config(num_virtual_tokens=6)
    refused(adapted, "[5, 64]", "[6, 64]")


@pytest.mark.parametrize("ids", [[3, 5], [3, 3, 5], [3, 5, 10**9], [3, 5, "x"], [3, 5, -1], {"wpe": [3, 5, 7]}, 7])
def test_trained_tokens_that_cannot_be_are_refused(make: Make, ids: object) -> None:
    adapted = make("gpt2-tanh", "tokens")
    adapted.config(trainable_token_indices=ids)
    refused(adapted, "wte")


def test_half_of_a_grown_vocabulary_is_refused(make: Make) -> None:
    adapted = make("gpt2-relu-untied", "saved-both")
    adapted.tensors(lambda tensors: tensors.pop("base_model.model.lm_head.weight"))
    name = "base_model.model.transformer.wte.weight"
    adapted.tensors(lambda tensors: tensors.update({name: torch.ones(643, 96)}))
    refused(adapted, "643", "640", "save both")


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_file_is_named(on_gpt2: Adapted, missing: str) -> None:
    (on_gpt2.path / missing).unlink()
    refused(on_gpt2, missing)


def test_file_without_tensors_is_refused(on_gpt2: Adapted) -> None:
    on_gpt2.tensors(lambda tensors: tensors.clear())
    refused(on_gpt2, "no tensors")


def test_damaged_file_is_named(on_gpt2: Adapted) -> None:
    (on_gpt2.path / "adapter_model.safetensors").write_bytes(b"\0" * 20)
    refused(on_gpt2, "adapter_model.safetensors")


def test_file_from_elsewhere_is_refused(on_gpt2: Adapted, tmp_path: Path) -> None:
    file = on_gpt2.path / "adapter_model.safetensors"
    file.rename(tmp_path / "elsewhere.safetensors")
    file.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        read(on_gpt2)
