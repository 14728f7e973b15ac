"""config.json both ways; what would load and then give wrong numbers is refused."""

import re
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bloomery.errors import CheckpointError
from bloomery.families import FAMILIES
from bloomery.model.config import DecoderConfig
from tiny import SHAPES, Shape, new_model

shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
BLOOM = {"model_type": "bloom", "vocab_size": 96, "hidden_size": 24, "n_layer": 2, "n_head": 3}
GPT2 = {"model_type": "gpt2", "vocab_size": 96, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 33}
STARCODER = GPT2 | {"model_type": "gpt_bigcode"}
FALCON = {"model_type": "falcon", "vocab_size": 96, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
LLAMA = FALCON | {"model_type": "llama", "intermediate_size": 50, "max_position_embeddings": 33}
MISTRAL = LLAMA | {"model_type": "mistral", "num_key_value_heads": 3}
MIXTRAL = MISTRAL | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
PHI = LLAMA | {"model_type": "phi"}
RAW = (BLOOM, GPT2, STARCODER, FALCON, LLAMA, MISTRAL, MIXTRAL, PHI)


def to_config(raw: dict[str, Any]) -> DecoderConfig:
    return FAMILIES[raw["model_type"]].to_config(raw)


@shapes
def test_config_survives_the_way_there_and_back(shape: Shape) -> None:
    config = to_config(new_model(shape).config.to_dict())
    assert to_config(FAMILIES[shape.family].from_config(config)) == config


@shapes
@torch.inference_mode()
def test_transformers_computes_the_same_by_the_config_we_write(shape: Shape) -> None:
    theirs = new_model(shape)
    written = FAMILIES[shape.family].from_config(to_config(theirs.config.to_dict()))
    read = AutoConfig.for_model(**written)
    assert type(read) is type(theirs.config)
    rebuilt = AutoModelForCausalLM.from_config(read).eval()
    rebuilt.load_state_dict(theirs.state_dict())
    ids = torch.arange(200)[None]
    torch.testing.assert_close(rebuilt(ids).logits, theirs(ids).logits, rtol=0, atol=0)
    length = "seq_length" if shape.family == "bloom" else "max_position_embeddings"
    assert getattr(read, length) == getattr(theirs.config, length)
    assert read.tie_word_embeddings == theirs.config.tie_word_embeddings


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu", "relu"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_value_of_a_config_survives(activation: Any, tied: bool) -> None:
    config = replace(to_config(GPT2), activation=activation, tied_head=tied, ffn_size=50, norm_eps=1e-3)
    assert to_config(FAMILIES["gpt2"].from_config(config)) == config
    config = replace(to_config(BLOOM), tied_head=tied, max_seq_len=77, norm_eps=1e-3)
    assert to_config(FAMILIES["bloom"].from_config(config)) == config


def test_old_spellings_mean_the_same() -> None:
    """bloom-560m says n_embed and num_attention_heads; GPT-2 configs of 2019 say n_ctx as well."""
    renamed = {"hidden_size": "n_embed", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers"}
    assert to_config({renamed.get(key, key): value for key, value in BLOOM.items()}) == to_config(BLOOM)
    renamed = {"n_embd": "hidden_size", "n_positions": "n_ctx", "n_head": "num_attention_heads"}
    assert to_config({renamed.get(key, key): value for key, value in GPT2.items()}) == to_config(GPT2)


@pytest.mark.parametrize("raw", RAW, ids=lambda raw: raw["model_type"])
def test_defaults_are_those_of_transformers(raw: dict[str, Any]) -> None:
    assert to_config(raw) == to_config(AutoConfig.for_model(**raw).to_dict() | raw)


@pytest.mark.parametrize(
    ("raw", "key", "value"),
    [
        (BLOOM, "apply_residual_connection_post_layernorm", True),
        (GPT2, "scale_attn_by_inverse_layer_idx", True),
        (GPT2, "scale_attn_weights", False),
        (GPT2, "add_cross_attention", True),
        (GPT2, "activation_function", "swish"),
        (GPT2, "activation_function", None),
        (STARCODER, "scale_attn_weights", False),
        (STARCODER, "add_cross_attention", True),
        (PHI, "qk_layernorm", True),
        (MISTRAL, "layer_types", ["sliding_attention"]),
        (LLAMA, "hidden_act", "swish"),
    ],
)
def test_variant_with_other_numbers_is_refused_by_key_and_value(raw: dict[str, Any], key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"{key} = {value!r}")) as caught:
        to_config(raw | {key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "key"),
    [(raw, key) for raw in RAW for key in raw if key not in ("model_type", "num_key_value_heads")],
    ids=lambda part: part if isinstance(part, str) else part["model_type"],
)
def test_missing_size_is_named(raw: dict[str, Any], key: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json has no '{key}'"):
        to_config({name: value for name, value in raw.items() if name != key})


def test_a_null_that_stands_for_a_size_is_missing() -> None:
    with pytest.raises(CheckpointError, match="has no 'vocab_size'"):
        to_config(BLOOM | {"vocab_size": None})


@pytest.mark.parametrize("value", [{}, [24], "24", 24.0])
@pytest.mark.parametrize(("raw", "key"), [(BLOOM, "hidden_size"), (GPT2, "n_embd"), (GPT2, "n_positions")])
def test_a_size_that_is_no_whole_number_is_refused_by_key(raw: dict[str, Any], key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"config.json has {key} = "):
        to_config(raw | {key: value})


@pytest.mark.parametrize("value", [[], {}])
def test_an_activation_that_is_no_name_is_refused(value: object) -> None:
    with pytest.raises(CheckpointError, match="activation_function"):
        to_config(GPT2 | {"activation_function": value})


PLAIN, SCALED = {"rope_theta": 5e5}, {"factor": 2.0}
BANDS = SCALED | {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (PLAIN, PLAIN | {"rope_type": "default"}),
        (PLAIN | {"rope_scaling": None}, PLAIN),
        (PLAIN | {"rope_scaling": SCALED | {"type": "linear"}}, PLAIN | SCALED | {"rope_type": "linear"}),
        (PLAIN | {"rope_scaling": BANDS | {"rope_type": "llama3"}}, PLAIN | BANDS | {"rope_type": "llama3"}),
    ],
)
def test_rotary_words_of_before_and_after_transformers_5_mean_the_same(old: Any, new: Any) -> None:
    assert to_config(LLAMA | old) == to_config(LLAMA | {"rope_parameters": new})
    assert to_config(LLAMA | old) != to_config(LLAMA)


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"type": "dynamic", "factor": 2.0}, "by 'dynamic', which is not one of: default, linear, llama3"),
        ({"type": ["linear"]}, r"by \['linear'\], which is not one of"),
        ({"type": "linear"}, "by 'linear', but has no 'factor'"),
        ({"type": "linear", "factor": 0}, "must be above 0"),
        ({"type": "linear", "factor": "2"}, "factor must be a number"),
        ({"rope_type": "llama3", **BANDS, "low_freq_factor": 4.0}, "low_freq_factor 4.0 must be below"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor = 1.5"),
        ({"partial_rotary_factor": "all"}, "partial_rotary_factor = 'all'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5, a variant that is not supported"),
        ([2.0], r"rope_scaling = \[2.0\], which is no table"),
    ],
)
def test_rotary_positions_we_do_not_have_are_refused(rope: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        to_config(LLAMA | {"rope_scaling": rope})


def test_share_of_a_head_that_cannot_turn_is_refused() -> None:
    with pytest.raises(CheckpointError, match="3 dimensions of a head are rotary, which is not even"):
        to_config(PHI | {"partial_rotary_factor": 0.4})


@pytest.mark.parametrize("raw", [FALCON, MISTRAL, MIXTRAL], ids=lambda raw: raw["model_type"])
def test_share_of_heads_that_are_rotary_as_a_whole_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"partial_rotary_factor = 0\.5"):
        to_config(raw | {"partial_rotary_factor": 0.5})
    assert to_config(raw | {"partial_rotary_factor": 1.0}) == to_config(raw)


LINEAR = SCALED | {"rope_type": "linear"}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": LINEAR, "rope_parameters": LINEAR | {"factor": 4.0, "rope_theta": 5e3}},
        {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 5e3}},
        {"rope_scaling": BANDS | {"rope_type": "llama3"}, "original_max_position_embeddings": 8},
    ],
)
def test_rotary_words_that_contradict_each_other_are_settled_as_by_transformers(rope: dict[str, Any]) -> None:
    config = AutoConfig.for_model(**LLAMA, **deepcopy(rope))  # which is changed on the way
    theirs = AutoModelForCausalLM.from_config(config).config.rope_parameters
    assert to_config(LLAMA | rope) == to_config(LLAMA | {"rope_parameters": theirs})


@pytest.mark.parametrize(
    ("raw", "more"),
    [
        (BLOOM, {"num_attention_heads": 4}),
        (GPT2, {"num_attention_heads": 4}),
        (STARCODER, {"max_position_embeddings": 50}),
        (MIXTRAL, {"num_experts": 3}),
    ],
    ids=lambda part: part.get("model_type", ""),
)
def test_two_names_of_one_size_that_differ_are_refused(raw: dict[str, Any], more: dict[str, int]) -> None:
    name, value = next(iter(more.items()))
    with pytest.raises(CheckpointError, match=f"and {name} = {value}, which are names of one size"):
        to_config(raw | more)


def test_old_context_of_gpt2_is_not_asked_where_there_is_a_new_one() -> None:
    assert to_config(GPT2 | {"n_ctx": 20}) == to_config(GPT2)


@pytest.mark.parametrize(
    ("raw", "key"),
    [(FALCON, key) for key in ("alibi", "multi_query", "parallel_attn", "new_decoder_architecture")]
    + [(STARCODER, "multi_query")],
)
@pytest.mark.parametrize("value", ["false", 0, []])
def test_yes_or_no_that_is_neither_is_refused(raw: dict[str, Any], key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"{key} = {value!r}: it must be true or false")):
        to_config(raw | {key: value})


@pytest.mark.parametrize("value", ["x", [8], {"a": 8}, 8.0, float("inf"), 0])
def test_head_size_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(CheckpointError, match=r"head_dim|dims"):
        to_config(LLAMA | {"head_dim": value})
