"""The one checkpoint that all engines run, and what each is given of it. Knows no engine's code, only its converter.

What is made is kept: a folder or file that is there is taken as it is, since it appears whole or not at all.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from peers.cpu.engines import Entry, NotAvailable

from bloomery import LLM
from bloomery.checkpoint.export import export_decoder
from bloomery.log import logger
from bloomery.text.bytewise import bytewise_files

BENCHMARKS = Path(__file__).resolve().parents[2]
SEED = 1
QUIET = 0.01
"""What an embedding is scaled by behind its norm. As a model begins, its layers add little to the embedding, and the
likeliest token is the last one again: an engine that computed the layers wrongly would not be found out."""


def make_checkpoint(shape: str, folder: Path) -> Path:
    """Random weights of a shape in bf16, as a Hugging Face folder with a tokenizer."""
    target = folder / "checkpoint"
    if not target.exists():
        logger.info("making the checkpoint")
        llm = LLM(shape=shape, dtype="bfloat16", device="cpu", seed=SEED)
        norm = llm.decoder.embed.norm
        assert norm is not None
        with torch.no_grad():
            norm.weight.mul_(QUIET)
        config = llm.decoder.config
        files = bytewise_files(config.vocab_size, config.max_seq_len)
        files["tokenizer_config.json"] = with_special_tokens(files["tokenizer_config.json"])
        end = {"eos_token_id": llm.folder.eos_ids[0] if llm.folder.eos_ids else None}
        export_decoder(llm.decoder, llm.folder.family, target, config=end, generation=end, files=files)
    return target


def with_special_tokens(described: str) -> str:
    """The end of a text is its beginning too, and what is unknown: CTranslate2 loads nothing that lacks one of them."""
    found = json.loads(described)
    return json.dumps(found | dict.fromkeys(("bos_token", "unk_token"), found["eos_token"]), indent=2) + "\n"


def converted(entry: Entry, checkpoint: Path, pythons: dict[str, str]) -> Path:
    """What an engine loads.

    Raises:
        NotAvailable: it cannot be made, and why.
    """
    if entry.venv == "llama":
        return gguf(entry.form, checkpoint, pythons["llama"])
    if entry.venv == "ctranslate2":
        return ctranslate(entry.form, checkpoint, pythons)
    return checkpoint


def gguf(form: str, checkpoint: Path, python: str) -> Path:
    target = checkpoint.with_name(f"{form}.gguf")
    command = [python, "-m", "peers.cpu.write_gguf"]
    if form == "BF16":
        return made(target, lambda fresh: [*command, str(checkpoint), str(fresh)])
    source = gguf("BF16", checkpoint, python)
    return made(target, lambda fresh: [*command, str(source), str(fresh), form])


def ctranslate(form: str, checkpoint: Path, pythons: dict[str, str]) -> Path:
    packages = subprocess.run(
        [pythons["ctranslate2"], "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    command = [pythons["transformers"], "-m", "peers.cpu.write_ctranslate", packages, str(checkpoint)]
    return made(checkpoint.with_name(f"ctranslate2-{form}"), lambda fresh: [*command, str(fresh), form])


def made(target: Path, command: Callable[[Path], list[str]]) -> Path:
    """Beside and renamed."""
    if target.exists():
        return target
    logger.info("making %s", target.name)
    fresh = target.with_name(f"new-{target.name}")
    remove(fresh)
    ran = subprocess.run(
        command(fresh), env=environment(), capture_output=True, text=True, errors="replace", check=False
    )
    if ran.returncode:
        remove(fresh)
        last = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NotAvailable(f"{target.name} cannot be made: {last}")
    fresh.rename(target)
    return target


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def environment() -> dict[str, str]:
    """Of a process that finds this folder's modules, and nothing on the network."""
    paths = (str(BENCHMARKS), os.environ.get("PYTHONPATH", ""))
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def interpreters(peers: Path | None) -> dict[str, str]:
    """Of each environment, its own under `peers` or this one. Which of them has what is found out when it is used."""
    found = {}
    for venv in ("ours", "transformers", "llama", "ctranslate2"):
        python = None if peers is None else peers / venv / "bin" / "python"
        found[venv] = str(python) if python is not None and python.exists() else sys.executable
    return found
