"""Mixtral: Mistral's blocks, with a few of several experts in place of the one feed-forward half."""

from typing import Any

from bloomery.errors import CheckpointError
from bloomery.families.llama import BUFFERS, FRAME, common_sizes, common_words
from bloomery.families.rules import Family, Raw, Rule
from bloomery.families.words import require
from bloomery.model.config import DecoderConfig


def to_config(raw: Raw) -> DecoderConfig:
    experts = require(raw, "num_local_experts", "num_experts")
    if experts < 2:
        raise CheckpointError(f"config.json has num_local_experts = {experts}: it must be 2 or more")
    return DecoderConfig(
        **common_sizes(DEFAULTS | dict(raw)),
        sliding_window=raw.get("sliding_window"),
        num_experts=experts,
        experts_per_token=require(raw, "num_experts_per_tok"),
    )


def from_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        **common_words(config),
        "sliding_window": config.sliding_window,
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
    }


DEFAULTS = {"rope_theta": 1e6, "rms_norm_eps": 1e-5}
EXPERT = "layers.{i}.block_sparse_moe.experts.{e}"

MIXTRAL = Family(
    name="mixtral",
    to_config=to_config,
    from_config=from_config,
    prefix="model.",
    ignored=BUFFERS,
    rules=(
        *FRAME,
        Rule("layers.{i}.block_sparse_moe.gate.weight", "blocks.{i}.mlp.router.weight"),
        Rule(EXPERT + ".w1.weight", "blocks.{i}.mlp.experts.{e}.gate.weight"),
        Rule(EXPERT + ".w3.weight", "blocks.{i}.mlp.experts.{e}.up.weight"),
        Rule(EXPERT + ".w2.weight", "blocks.{i}.mlp.experts.{e}.down.weight"),
    ),
)
