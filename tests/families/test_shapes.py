"""Published shapes have the published number of parameters, and transformers understands them as we do."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bloomery.families import FAMILIES
from bloomery.families.shapes import SHAPES
from bloomery.model import layout

PUBLISHED = {
    "bloom-560m": 559_214_592,
    "bloom-1b1": 1_065_314_304,
    "bloom-1b7": 1_722_408_960,
    "bloom-3b": 3_002_557_440,
    "bloom-7b1": 7_069_016_064,
    "bloom-176b": 176_247_271_424,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    # The files of these two hold the tied head a second time, and the published number counts it.
    "falcon-7b": 7_217_189_760 - 65024 * 4544,
    "falcon-180b": 179_522_565_120 - 65024 * 14848,
    "falcon-40b": 41_303_293_952,
    "falcon-rw-1b": 1_311_625_216,
    "phi-2": 2_779_683_840,
    "starcoder": 15_517_456_384,
    "starcoderbase-1b": 1_137_207_296,
}
"""Numbers of parameters, of the model cards and of the headers of the published files."""


SAID_IN_SEVERAL_WAYS = {
    "n_ctx",
    "n_inner",
    "ffn_hidden_size",
    "num_ln_in_parallel_attn",
    "head_dim",
    "multi_query",
    "num_kv_heads",
}
"""Words of config.json that may be left out, or do not count beside others. The number of parameters hangs on them."""


def test_every_shape_has_a_published_number() -> None:
    assert set(PUBLISHED) == set(SHAPES)
    assert {raw["model_type"] for raw in SHAPES.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", SHAPES)
def test_shape_has_the_published_number_of_parameters(name: str) -> None:
    raw = SHAPES[name]
    config = FAMILIES[raw["model_type"]].to_config(raw)
    assert sum(tensor.numel() for tensor in layout.shapes(config).values()) == PUBLISHED[name]


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_counts_the_same(name: str) -> None:
    config = AutoConfig.for_model(**SHAPES[name])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert type(model).__name__ == SHAPES[name]["architectures"][0]
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", SHAPES)
def test_what_we_would_write_of_a_shape_is_what_transformers_reads_in_it(name: str) -> None:
    raw = SHAPES[name]
    family = FAMILIES[raw["model_type"]]
    ours = AutoConfig.for_model(**family.from_config(family.to_config(raw))).to_dict()
    theirs = AutoConfig.for_model(**raw).to_dict()
    shared = set(ours) & set(theirs) - SAID_IN_SEVERAL_WAYS
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}
