"""A trained adapter -> a folder as peft writes it: its words, its names and its matrices. Knows no training."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bloomery.checkpoint.adapter import PREFIX, split
from bloomery.checkpoint.header import Kind
from bloomery.checkpoint.replace import refuse_others
from bloomery.checkpoint.write import FileWriter, lay_out, write_bytes, write_json
from bloomery.disk.place import refuse_without_room, replacing_folder, sync_folder
from bloomery.errors import CheckpointError
from bloomery.families.rules import Family, Source
from bloomery.hub.repository import ADAPTER_WEIGHTS
from bloomery.model.decoder import Decoder
from bloomery.model.layout import shapes
from bloomery.train.lora import lora_layers
from bloomery.train.recipe.lora_options import LoraOptions

WEIGHT = ".weight"


def write_lora(
    decoder: Decoder,
    family: Family,
    target: Path,
    options: LoraOptions,
    *,
    base: str | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write adapter_config.json, adapter_model.safetensors and any more text `files` as one folder.

    Each published matrix gets the A and B that peft would have trained for it, in the dtype that they were trained in.
    The folder appears whole or not at all: it is written beside `target` and takes its place.

    Args:
        decoder: as `add_lora_` with these options has made it.
        base: the name of the model that was adapted, for whoever loads the adapter.
        files: name -> text, such as a model card.

    Raises:
        UsageError: `target` holds something else than an adapter, which would be lost.
        CheckpointError: the disk does not take it.
    """
    target = target.resolve()  # where a link points to, not the link, is replaced
    refuse_others(target, "adapter", ADAPTER_WEIGHTS, ("adapter_config.json", b'"peft_type"'))
    sources = family.sources(decoder.config, shapes(decoder.config))
    adapted = {name: sources[name] for name in lora_layers(decoder)}
    tensors = _tensors(decoder, family, adapted)
    words = _words(options, adapted, sources) | {"base_model_name_or_path": base}
    try:
        with replacing_folder(target) as folder:
            refuse_without_room(folder, sum(tensor.nbytes for tensor in tensors.values()))
            _write_weights(folder / ADAPTER_WEIGHTS[0], tensors)
            write_json(folder / "adapter_config.json", words)
            for name, text in (files or {}).items():
                write_bytes(folder / name, text.encode())
            sync_folder(folder)
        sync_folder(target.parent)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written ({error}): choose another place or make room") from error


def _tensors(decoder: Decoder, family: Family, adapted: Mapping[str, Source]) -> dict[str, Tensor]:
    """peft's names -> A (r, in) and B (out, r)."""
    found = {}
    for name, layer in lora_layers(decoder).items():
        downs = layer.lora_a.detach().split(layer.rank)
        ups = split(adapted[name], layer.lora_b.detach(), decoder.config)
        for theirs, down, up in zip(adapted[name].theirs, downs, ups, strict=True):
            module = PREFIX + family.written(theirs).removesuffix(WEIGHT)
            found[f"{module}.lora_A.weight"], found[f"{module}.lora_B.weight"] = down, up
    return found


def _words(options: LoraOptions, adapted: Mapping[str, Source], sources: Mapping[str, Source]) -> dict[str, Any]:
    """adapter_config.json: what peft cannot see in the tensors."""
    chosen = {theirs.removesuffix(WEIGHT) for source in adapted.values() for theirs in source.theirs}
    others = {
        theirs.removesuffix(WEIGHT)
        for source in sources.values()
        for theirs in source.theirs
        if theirs.endswith(WEIGHT)
    } - chosen
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": options.rank,
        "lora_alpha": int(options.alpha) if options.alpha == int(options.alpha) else options.alpha,
        "lora_dropout": options.dropout,
        "use_rslora": options.rslora,
        "target_modules": sorted({_shortest(module, others) for module in chosen}),
        "fan_in_fan_out": any(s.reorder is not None and s.reorder.transposes for s in adapted.values()),
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _shortest(module: str, others: Iterable[str]) -> str:
    """The last words of a module's name that no other module ends with: 'query_key_value', or 'attn.c_proj'."""
    words = module.split(".")
    ends = (".".join(words[-count:]) for count in range(1, len(words)))
    return next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), module)


def _write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    layout = lay_out((name, Kind(tensor.dtype, tuple(tensor.shape))) for name, tensor in tensors.items())
    with FileWriter(path, layout, None) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor, f"the adapter: tensor '{name}'")
        writer.finish()
