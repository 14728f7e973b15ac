"""`bloomery info`: this machine, which code paths run on it, and what a model is."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.console import Console
from rich.table import Table

from bloomery import __version__
from bloomery.checkpoint.folder import Folder, read_folder
from bloomery.checkpoint.hub import BUILT_IN, resolve
from bloomery.checkpoint.load import load_decoder
from bloomery.cli.options import InfoOptions
from bloomery.devices import threads
from bloomery.model.cache import kv_dtype
from bloomery.model.size import nbytes, weights_read
from bloomery.ops import native
from bloomery.settings import cache_dir

Facts = dict[str, object]


def run(options: InfoOptions) -> int:
    """Print facts; always 0 unless the model cannot be read."""
    facts: dict[str, Facts] = {"machine": _machine()}
    if options.model:
        facts["model"] = _model(read_folder(resolve(options.model)))
    if options.json:
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    console = Console()
    for title, rows in facts.items():
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in rows.items():
            table.add_row(name, str(value))
        console.print(table)
    return 0


def _machine() -> Facts:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "bloomery": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "threads": threads(),
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


def _model(folder: Folder) -> Facts:
    decoder = load_decoder(folder)
    config = folder.config
    sampling = {key: value for key, value in folder.generation.items() if not key.startswith(("_", "transformers"))}
    return {
        "path": str(folder.path),
        "family": folder.family.name,
        "layers": config.num_layers,
        "hidden size": config.hidden_size,
        "heads": config.num_heads,
        "vocabulary": config.vocab_size,
        "context": config.max_seq_len,
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in decoder.parameters()),
        "weights (bytes)": nbytes(decoder.parameters()),
        "read per token (bytes)": nbytes(weights_read(decoder)),
        "KV per token (bytes)": 2
        * config.num_layers
        * config.hidden_size
        * kv_dtype(decoder.dtype, decoder.device).itemsize,
        "tokenizer": folder.tokenizer.name if folder.tokenizer else "none: works on token ids",
        "end-of-sequence ids": list(folder.eos_ids),
        "generation defaults": sampling or "none",
    }
