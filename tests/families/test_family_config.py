"""config.json both ways; what would load and then give wrong numbers is refused."""

from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoConfig

from bloomery.errors import CheckpointError
from bloomery.families import FAMILIES
from bloomery.model.config import DecoderConfig
from tiny import SHAPES, Shape, new_model

shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
BLOOM = {"model_type": "bloom", "vocab_size": 96, "hidden_size": 24, "n_layer": 2, "n_head": 3}
GPT2 = {"model_type": "gpt2", "vocab_size": 96, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 33}


def to_config(raw: dict[str, Any]) -> DecoderConfig:
    return FAMILIES[raw["model_type"]].to_config(raw)


@shapes
def test_config_survives_the_way_there_and_back(shape: Shape) -> None:
    config = to_config(new_model(shape).config.to_dict())
    assert to_config(FAMILIES[shape.family].from_config(config)) == config


@shapes
def test_transformers_reads_what_we_write(shape: Shape) -> None:
    theirs = new_model(shape).config
    written = FAMILIES[shape.family].from_config(to_config(theirs.to_dict()))
    read = AutoConfig.for_model(**written)
    assert type(read) is type(theirs)
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "layer_norm_epsilon"):
        assert getattr(read, name) == getattr(theirs, name)
    assert read.tie_word_embeddings == theirs.tie_word_embeddings
    if shape.family == "gpt2":
        assert read.n_positions == theirs.n_positions
        assert read.activation_function == theirs.activation_function
        assert (read.n_inner or 4 * read.n_embd) == (theirs.n_inner or 4 * theirs.n_embd)
    else:
        assert read.seq_length == theirs.seq_length


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


def test_defaults_are_those_of_transformers() -> None:
    for raw in (BLOOM, GPT2):
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
    ],
)
def test_variant_with_other_numbers_is_refused_by_key_and_value(raw: dict[str, Any], key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"{key} = {value!r}") as caught:
        to_config(raw | {key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "key"),
    [(raw, key) for raw in (BLOOM, GPT2) for key in raw if key != "model_type"],
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
