"""`bloomery info`: this machine, which code paths run on it, what a model is and takes, and which models are here."""

import json
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bloomery import __version__
from bloomery.checkpoint.folder import Folder, read_folder
from bloomery.checkpoint.license import license_of
from bloomery.checkpoint.load import natural_dtype
from bloomery.checkpoint.precision import dtype_name
from bloomery.checkpoint.quantized import scheme_of
from bloomery.checkpoint.store import open_portions
from bloomery.checkpoint.tensors import EMBEDDING, KnownTensors
from bloomery.cli.options import InfoOptions
from bloomery.devices import Threads, pick_cache_dtype, pick_device, pick_threads
from bloomery.engine.options import MAX_STEP_TOKENS
from bloomery.engine.shapes import HEAD_AT_ONCE
from bloomery.environment import cache_dir
from bloomery.errors import UsageError
from bloomery.hub.local import local_models
from bloomery.hub.resolve import BUILT_IN, resolve
from bloomery.model.cache import kv_dtype
from bloomery.model.config import DecoderConfig
from bloomery.model.size import activation_bytes, bytes_read, kv_bytes, kv_token_bytes, parameter_count
from bloomery.ops import native
from bloomery.ops.choice import has_native, has_native_attention
from bloomery.progress import as_size
from bloomery.quant.scheme import Scheme
from bloomery.quant.swap import weights

Facts = dict[str, object]


def run(options: InfoOptions) -> int:
    """Print facts; always 0 unless the model cannot be read. No weights are read, only what the files say of them."""
    if not options.model and (options.tokens is not None or options.batch != 1 or options.cache_dtype != "auto"):
        raise UsageError(
            "--tokens, --batch and --cache-dtype are for a model: give one, such as bloomery info dickens --tokens 512"
        )
    if not options.model and options.revision is not None:
        raise UsageError("--revision is for a model of the Hub: name one")
    facts: dict[str, Facts] = {"machine": _machine(pick_threads(options.threads))}
    if options.model:
        where = resolve(options.model, options.revision, options.offline, options.token)
        facts |= _model(read_folder(where), options)
    if options.local:
        facts["models here"] = _local()
    if options.json:
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    console = Console()
    for title, rows in facts.items():
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in rows.items():
            table.add_row(name, escape(_shown(name, value)))
        console.print(table)
    return 0


def _shown(name: str, value: object) -> str:
    if "(bytes)" in name and isinstance(value, int):
        return f"{value:,} ({as_size(value)})"
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_shown(name, inner)}" for key, inner in value.items())
    return f"{value:,}" if type(value) is int else str(value)


def _machine(threads: Threads) -> Facts:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "bloomery": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "threads": threads.count,
        "threads from": threads.source,
        "cpu instructions": torch.backends.cpu.get_cpu_capability(),
        "native kernels": "compiled" if native.library() else "not compiled: reference path",
        "gpus": ", ".join(gpus) or "none",
        "cache folder": str(cache_dir()),
        "built-in models": ", ".join(BUILT_IN),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _local() -> Facts:
    found = {}
    for model in local_models():
        at = f"@{model.revision}" if model.revision else ""
        found[model.name + at] = {"path": str(model.path), "size (bytes)": model.size}
    return dict(found)


def _model(folder: Folder, options: InfoOptions) -> dict[str, Facts]:
    portions, scheme = open_portions(folder), scheme_of(folder)
    config, device = folder.config, pick_device("auto")
    dtype = natural_dtype(portions[0].kind(EMBEDDING).dtype, device)
    by_dtype = _bytes_by_dtype(config, portions, scheme)
    running = [_running_bytes(config, portion, scheme, dtype) for portion in portions]
    sampling = {key: value for key, value in folder.generation.items() if not key.startswith(("_", "transformers"))}
    kv = pick_cache_dtype(options.cache_dtype) or kv_dtype(dtype, device)
    facts: Facts = {
        "path": str(folder.path),
        "family": folder.family.name,
        "licence": license_of(folder) or "not stated",
        **_store(folder),
        "layers": config.num_layers,
        "hidden size": config.hidden_size,
        "heads": config.num_heads,
        "heads of keys and values": config.num_kv_heads,
        "vocabulary": config.vocab_size,
        "context": config.max_seq_len,
        "parameters": parameter_count(config),
        "weights (bytes)": sum(by_dtype.values()),
        "by dtype (bytes)": by_dtype,
        "runs here on": str(device),
        "runs here in": dtype_name(dtype),
        "kernels": _kernels(dtype, kv, device, scheme),
        "read per token (bytes)": sum(bytes_read(config, sizes) for sizes in running),
        "KV per token (bytes)": kv_token_bytes(config, kv),
        "tokenizer": folder.tokenizer.name if folder.tokenizer else "none: works on token ids",
        "end-of-sequence ids": list(folder.eos_ids),
        "generation defaults": sampling or "none",
    }
    return {
        "model": facts,
        "memory": _memory(config, sum(map(sum, (sizes.values() for sizes in running))), dtype, kv, device, options),
    }


def _bytes_by_dtype(config: DecoderConfig, portions: Sequence[KnownTensors], scheme: Scheme | None) -> dict[str, int]:
    """Of the weights as they are kept; packed ones under the scheme's name."""
    found: Counter[str] = Counter()
    for tensors in portions:
        for name, weight in weights(config, scheme).items():
            dtype, shape = tensors.kind(name)
            kept_in = dtype_name(dtype) if weight.scheme is None else weight.scheme.name
            found[kept_in] += torch.Size(shape).numel() * dtype.itemsize
    return dict(found)


def _running_bytes(
    config: DecoderConfig, tensors: KnownTensors, scheme: Scheme | None, dtype: torch.dtype
) -> dict[str, int]:
    """Of each weight as it is computed with: name -> bytes."""
    found = {}
    for name, weight in weights(config, scheme).items():
        itemsize = dtype.itemsize if weight.scheme is None else 1
        found[name] = torch.Size(tensors.kind(name).shape).numel() * itemsize
    return found


def _store(folder: Folder) -> Facts:
    if folder.manifest is None:
        return {}
    source = folder.manifest.source
    at = f" at {source.revision}" if source.revision else ""
    return {
        "store": f"cut for {folder.manifest.tp} ranks" if folder.manifest.tp > 1 else "not cut",
        "quantization": str(folder.manifest.scheme or "none"),
        "made from": source.name + at,
    }


def _kernels(dtype: torch.dtype, kv: torch.dtype, device: torch.device, scheme: Scheme | None) -> str:
    """Which code computes what takes time: our own where it runs, else PyTorch's."""
    linear, attention = has_native(dtype, device), has_native_attention(kv, device)
    code = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else torch.cuda.get_device_name(device)
    level = native.LEVELS[native.level()] if linear or attention else ""
    if linear:
        products = dtype_name(dtype) if scheme is None else f"{scheme.name}, of tokens rounded to 8 bits"
        parts = [f"our own ({level}): linear layers in {products}"]
    else:
        products = dtype_name(dtype) if scheme is None else f"float32 with weights unpacked from {scheme.name}"
        parts = [f"PyTorch ({code}): matrix products in {products}"]
    if attention:
        ours = "" if linear else f"our own ({level}) "
        return ", ".join((*parts, f"{ours}attention in float32 to keys and values in {dtype_name(kv)}"))
    theirs = f"PyTorch's ({code}) " if linear else ""
    computed = kv
    if kv == torch.int8:
        computed = torch.float32 if device.type == "cpu" else dtype
    kept = f" to keys and values in {dtype_name(kv)}" if computed != kv else ""
    grouped = "text by text" if device.type == "cpu" else "texts of equal length together"
    return ", ".join((*parts, f"{theirs}scaled_dot_product_attention in {dtype_name(computed)}{kept}", grouped))


def _memory(
    config: DecoderConfig,
    weight_bytes: int,
    dtype: torch.dtype,
    kv: torch.dtype,
    device: torch.device,
    options: InfoOptions,
) -> Facts:
    """What a number of texts of a length take at once."""
    tokens = config.max_seq_len if options.tokens is None else options.tokens
    if not 1 <= tokens <= config.max_seq_len:
        raise UsageError(f"tokens is {tokens}: give 1 to {config.max_seq_len}, the model's context")
    if options.batch < 1:
        raise UsageError(f"batch is {options.batch}: give at least 1")
    step = min(MAX_STEP_TOKENS, tokens * options.batch)
    logits = min(options.batch, HEAD_AT_ONCE)
    parts = {
        "weights (bytes)": weight_bytes,
        "keys and values (bytes)": kv_bytes(config, tokens, options.batch, kv),
        "largest step, about (bytes)": activation_bytes(
            config,
            step,
            tokens,
            dtype.itemsize,
            kv,
            logits,
            native=has_native(dtype, device) and has_native_attention(kv, device),
        ),
    }
    texts = {"texts at once": options.batch, "tokens of each": tokens, "tokens of a step, at most": step}
    return {**texts, **parts, "together (bytes)": sum(parts.values())}
