"""peft's words -> changes and virtual tokens: its adapter_config.json and its names of tensors. Knows no file, no model
and no family: names of weights stay the published ones.

A message says what is wrong; whoever knows the file says where.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bloomery.adapters.changes import Added, Change, LowRank, Replaced, Rows, Scaled
from bloomery.adapters.virtual import PrefixTokens, PromptTokens, VirtualTokens
from bloomery.errors import CheckpointError
from bloomery.model.config import DecoderConfig

Raw = Mapping[str, Any]
"""A parsed adapter_config.json."""
Parts = dict[str, Tensor]
"""What an adapter has for one module: the last words of peft's names -> tensors."""

MERGE = "merge it with peft, and load the result"
WEIGHT_KINDS = ("LORA", "IA3")
VIRTUAL_KINDS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")

NOT_MERGED = (
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "use_bdlora",
    "use_qalora",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "megatron_config",
)
"""Variants of LoRA that compute something else than the one sum of matrices."""
CHANGES_BELOW = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of LoRA that also change the weights of the model itself, by what they find there."""

TAKEN_IN = (
    *("peft_type", "r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "modules_to_save"),
    *("trainable_token_indices", "init_lora_weights", "num_virtual_tokens", "num_attention_heads"),
    *NOT_MERGED,
)
"""What is read here."""
TOLD_BY_TENSORS = (
    *("target_modules", "exclude_modules", "feedforward_modules", "layers_to_transform", "layers_pattern", "bias"),
    *("lora_bias", "fan_in_fan_out", "ensure_weight_tying", "token_dim", "num_layers", "prefix_projection"),
)
OF_TRAINING = (
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("lora_dropout", "init_ia3_weights", "init_weights", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "megatron_core", "qalora_group_size", "runtime_config", "prompt_tuning_init"),
    *("prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", "num_transformer_submodules"),
    *("encoder_hidden_size", "encoder_num_layers", "encoder_dropout", "encoder_reparameterization_type"),
)

BELOW = ("base_layer", "token_adapter.base_layer", "original_module")
"""Weights of the model itself, which peft saves with an adapter for a vocabulary that has grown."""

PARTS = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector|ia3_l"
    r"|token_adapter\.trainable_tokens_delta"
    r"|(?:base_layer\.|token_adapter\.base_layer\.|original_module\.|modules_to_save\.)?(?:weight|bias))"
)


def kind_of(raw: Raw) -> str:
    """The kind of adapter.

    Raises:
        CheckpointError: one that we do not have.
    """
    kind = raw.get("peft_type")
    if kind not in (*WEIGHT_KINDS, *VIRTUAL_KINDS):
        known = ", ".join((*WEIGHT_KINDS, *VIRTUAL_KINDS))
        raise CheckpointError(f"peft_type {ascii(kind)[:100]} is not one of {known}: {MERGE}")
    return str(kind)


def unknown_words(raw: Raw) -> list[str]:
    """What is set and means nothing to us: written by a newer peft, perhaps."""
    known = {*TAKEN_IN, *TOLD_BY_TENSORS, *OF_TRAINING}
    return sorted(name for name, value in raw.items() if value and name not in known)


def read_changes(raw: Raw, tensors: Mapping[str, Tensor]) -> dict[str, list[Change]]:
    """The published name of a weight -> what happens to it, in order.

    Args:
        tensors: by peft's names, without the 'base_model.model.' before all of them.

    Raises:
        CheckpointError: a variant that cannot be merged, a tensor that is missing, unknown or of a wrong shape.
    """
    if kind_of(raw) == "LORA":
        _refuse_variants(raw)
    own = tuple(_words(raw, "modules_to_save"))
    changes: dict[str, list[Change]] = defaultdict(list)
    for module, parts in _by_module(tensors).items():
        for leaf in ("weight", "bias"):
            changes[f"{module}.{leaf}"] += _replaced(parts, leaf, module.endswith(own))
        if "token_adapter.trainable_tokens_delta" in parts:
            values = parts.pop("token_adapter.trainable_tokens_delta")
            changes[f"{module}.weight"].append(Rows(_trained_tokens(raw, module), values))
        change = _low_rank if kind_of(raw) == "LORA" else _scaled
        for leaf, step in change(raw, module, parts).items():
            changes[f"{module}.{leaf}"].append(step)
        if parts:
            raise CheckpointError(
                f"tensor '{module}.{min(parts)}' is one too many, or some beside it are missing: fetch it again"
            )
    return {name: steps for name, steps in changes.items() if steps}


def read_virtual(raw: Raw, tensors: Mapping[str, Tensor], config: DecoderConfig) -> VirtualTokens:
    """Virtual tokens of an adapter for models of this shape.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape.
    """
    if list(tensors) != ["prompt_embeddings"]:
        found = ascii(sorted(tensors)[:5])
        raise CheckpointError(f"it holds {found} where 'prompt_embeddings' should stand alone: fetch it again")
    learned = tensors["prompt_embeddings"]
    count = _whole(raw, "num_virtual_tokens")
    prefix = kind_of(raw) == "PREFIX_TUNING"
    shape = (config.num_layers, 2, config.num_kv_heads, config.head_dim)
    wanted = (count, math.prod(shape) if prefix else config.hidden_size)
    if learned.shape != wanted:
        raise CheckpointError(
            f"prompt_embeddings are {list(learned.shape)}, but {count} virtual tokens of this model are "
            f"{list(wanted)}: give the model that it was trained on"
        )
    if not prefix:
        return PromptTokens(learned)
    heads = _whole(raw, "num_attention_heads", config.num_kv_heads)
    if heads != config.num_kv_heads:
        raise CheckpointError(
            f"it has {heads} heads of keys and values, and the model {config.num_kv_heads}: "
            "give the model that it was trained on"
        )
    keys, values = learned.unflatten(1, shape).transpose(0, 1).unbind(2)  # (L, N, 2, K, D)
    return PrefixTokens(keys, values)


def _by_module(tensors: Mapping[str, Tensor]) -> dict[str, Parts]:
    found: dict[str, Parts] = defaultdict(dict)
    for name, tensor in tensors.items():
        split = PARTS.fullmatch(re.sub(r"(lora_magnitude_vector)\.weight$", r"\1", name))  # there are both spellings
        if split is None or split["part"] in found[split["module"]]:
            raise CheckpointError(f"tensor {ascii(name)[:200]} is not of a known kind, or there twice: {MERGE}")
        found[split["module"]][split["part"]] = tensor
    return found


def _refuse_variants(raw: Raw) -> None:
    for name in NOT_MERGED:
        if raw.get(name):
            raise CheckpointError(f"{name} is set, a variant of LoRA that is not one sum of matrices: {MERGE}")
    start = str(raw.get("init_lora_weights")).lower()
    if start.startswith(CHANGES_BELOW):
        raise CheckpointError(
            f"init_lora_weights is {start!a}, which changes the model's own weights too: "
            "save the adapter with path_initial_model_for_weight_conversion"
        )


def _replaced(parts: Parts, leaf: str, own: bool) -> list[Change]:
    """A module's weight or bias that is there whole, perhaps as it was below the adapter and as the adapter's own."""
    found = [Replaced(parts.pop(f"{below}.{leaf}"), below=True) for below in BELOW if f"{below}.{leaf}" in parts]
    copy = parts.get(f"modules_to_save.{leaf}")
    if copy is not None and leaf in parts and torch.equal(copy, parts[leaf]):
        del parts[f"modules_to_save.{leaf}"]
    if leaf in parts:
        found.append(Replaced(parts.pop(leaf), below=not own))
    return list(found)


def _low_rank(raw: Raw, module: str, parts: Parts) -> dict[str, Change]:
    """LoRA's changes of a module; takes what it needs out of `parts`."""
    table = {"lora_embedding_A", "lora_embedding_B"} <= parts.keys()
    if not table and not {"lora_A.weight", "lora_B.weight"} <= parts.keys():
        return {}
    names = ("lora_embedding_B", "lora_embedding_A") if table else ("lora_B.weight", "lora_A.weight")
    up, down = (parts.pop(name) for name in names)  # (out, r), (r, in)
    rank = _whole(_for_module(raw, "r", "rank_pattern", module), "r", 8)
    if up.dim() != 2 or down.dim() != 2 or not up.shape[1] == down.shape[0] == rank:
        sizes = f"{list(up.shape)} and {list(down.shape)}"
        raise CheckpointError(f"the matrices of '{module}' are {sizes}, which is not rank {rank}: fetch it again")
    if table:  # its rows are looked up, not multiplied: out and in change places
        up, down = down.T, up.T
    scale = _alpha(raw, module) / (math.sqrt(rank) if raw.get("use_rslora") else rank)
    magnitude = None
    if raw.get("use_dora"):
        magnitude = parts.pop("lora_magnitude_vector", None)
        if magnitude is None:
            raise CheckpointError(f"use_dora is set, but '{module}' has no lora_magnitude_vector: fetch it again")
    found: dict[str, Change] = {"weight": LowRank(up, down, scale, magnitude, table and magnitude is not None)}
    if "lora_B.bias" in parts:
        found["bias"] = Added(parts.pop("lora_B.bias").float() * scale)
    return found


def _alpha(raw: Raw, module: str) -> float:
    value = _for_module(raw, "lora_alpha", "alpha_pattern", module).get("lora_alpha", 8)
    if type(value) not in (int, float) or not -1e30 < value < 1e30:
        raise CheckpointError(f"lora_alpha of '{module}' is {str(value)[:50]}, which is no number: correct it")
    return value


def _scaled(raw: Raw, module: str, parts: Parts) -> dict[str, Change]:
    """IA3's changes of a module. A column of factors is for what comes out, bias and all; a row for what goes in."""
    factor = parts.pop("ia3_l", None)
    if factor is None:
        return {}
    if factor.dim() != 2 or 1 not in factor.shape:
        raise CheckpointError(f"'{module}.ia3_l' is {list(factor.shape)}, neither a column nor a row: fetch it again")
    if factor.shape[1] != 1:
        return {"weight": Scaled(factor)}
    return {"weight": Scaled(factor), "bias": Scaled(factor.flatten())}


def _trained_tokens(raw: Raw, module: str) -> Tensor:
    """The ids whose vectors an adapter replaces in a module."""
    given = raw.get("trainable_token_indices")
    if isinstance(given, dict):
        given = next((ids for name, ids in given.items() if f".{module}".endswith(f".{name}")), None)
    ids = given if isinstance(given, list) else []
    if not ids or not all(type(token) is int and 0 <= token < 2**31 for token in ids) or len(set(ids)) != len(ids):
        raise CheckpointError(
            f"trainable_token_indices do not say which tokens '{module}' has vectors for: correct them"
        )
    return torch.tensor(ids, dtype=torch.long)


def _for_module(raw: Raw, name: str, patterns: str, module: str) -> Raw:
    """The configuration with a value of the module's own, where the first pattern that matches its name has one."""
    try:
        for pattern, value in (raw.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return {name: value}
    except (AttributeError, re.error):
        raise CheckpointError(f"{patterns} is no table of patterns and numbers: correct it") from None
    return raw


def _whole(raw: Raw, name: str, default: int | None = None) -> int:
    value = raw.get(name, default)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{name} is {value!r}, which is no whole number above 0: correct it")
    return value


def _words(raw: Raw, name: str) -> list[str]:
    value = raw.get(name) or []
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise CheckpointError(f"{name} is {value!r}, which is no list of names: correct it")
    return value
