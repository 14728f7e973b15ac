"""What generating takes of memory beside weights, keys and values, and what large pages bring.

    python benchmarks/memory.py
    python benchmarks/memory.py --shape bloom-1b7 --work ~/stores

A store of random weights is made in each format, and each case runs in a process of its own. Memory is what the kernel
counts beyond what `import torch` takes: resident at most, and anonymous, which no file stands behind, in the end. One
case runs in a memory control group of 700 MB (--limit), page cache included; where none may be made, that is said. The
tokenizer is measured by itself: what its library takes for a vocabulary is in all the other figures. Mapped and copied
weights are compared in one process, in turns. Linux only. Tables go to stdout, figures into a JSON file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bloomery.bench.machine import machine
from bloomery.checkpoint.convert import convert
from bloomery.checkpoint.random_origin import random_origin
from bloomery.devices import set_threads
from bloomery.disk.small import save_json
from bloomery.log import configure, logger
from bloomery.quant.scheme import SCHEMES

HERE = Path(__file__).resolve().parent
GROUPS = Path("/sys/fs/cgroup")
LONG = {
    "model_type": "llama",
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40_960,
}
MB = 1e6


def main() -> int:
    options = parse()
    configure()
    with tempfile.TemporaryDirectory(prefix="memory-") as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        results = {"machine": machine(set_threads()), "shape": options.shape} | measured(options, work)
    save_json(options.to, results)
    print(as_table(results))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", default="bloom-560m", help="a published shape, or a config.json")
    parser.add_argument("--formats", nargs="+", default=["none", *SCHEMES], choices=["none", *SCHEMES])
    parser.add_argument("--length", type=int, default=64, help="tokens of a prompt, and of what is generated")
    parser.add_argument("--long", type=int, default=40_950, help="tokens of the long prompt")
    parser.add_argument("--limit", type=int, default=700_000_000, help="bytes")
    parser.add_argument("--rounds", type=int, default=7, help="of mapped and copied weights")
    parser.add_argument("--work", type=Path, help="keeps the stores; else they are thrown away")
    parser.add_argument("--to", type=Path, default=HERE / "results" / "memory.json")
    return parser.parse_args()


def measured(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    stores = {name: store(options.shape, name, work) for name in options.formats}
    long = work / "long" / "config.json"
    long.parent.mkdir(exist_ok=True)
    long.write_text(json.dumps(LONG))
    cases = {
        f"{called(name)}, {texts} text{'s' * (texts > 1)}": child(
            "generate", str(path), texts, options.length, options.length, {}
        )
        for name, path in stores.items()
        for texts in (1, 16)
    }
    first, path = next(iter(stores.items()))
    copied = child("generate", str(path), 1, options.length, options.length, {"huge_pages": True})
    prompt = child("generate", str(store(str(long), "none", long.parent)), 1, options.long, 8, {})
    return {
        "cases": cases | {f"{called(first)}, 1 text, --huge-pages": copied, f"prompt of {options.long} tokens": prompt},
        "tokenizer": child("tokenizer", str(path)),
        "limited": {"limit": options.limit} | limited(str(path), options),
        "huge_pages": {called(name): child("pages", str(path), options.rounds) for name, path in stores.items()},
    }


def called(name: str) -> str:
    return "bf16" if name == "none" else name


def store(shape: str, name: str, work: Path) -> Path:
    target = work / f"{Path(shape).stem}-{name}"
    if not target.exists():
        convert(random_origin(shape, 0, torch.bfloat16), target, scheme=SCHEMES.get(name))
    return target


def child(what: str, *arguments: Any, before: tuple[str, ...] = ()) -> Any:
    """What it says. Raises CalledProcessError."""
    command = [*before, sys.executable, str(HERE / "peers" / "generating.py"), what, json.dumps(arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def limited(path: str, options: argparse.Namespace) -> dict[str, Any]:
    """The same under a limit; or why not."""
    try:
        forget(Path(path))
        with group(options.limit) as folder:
            enter = ("sh", "-c", f'echo $$ > "{folder}/cgroup.procs" && exec "$@"', "sh")
            return dict(child("generate", path, 1, 16, 8, {}, before=enter))
    except (OSError, subprocess.CalledProcessError) as error:
        logger.warning("nothing is known of a limit: %s", error)
        return {"failed": str(error)}


def forget(folder: Path) -> None:
    """Have the system let go of what it has in memory of these files: a group pays for what it is the first to read."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def group(limit: int) -> Iterator[Path]:
    """A memory control group, of version 1 or 2."""
    first = GROUPS / "memory" if (GROUPS / "memory").exists() else GROUPS
    folder = first / f"bloomery-memory-{limit}"
    folder.mkdir()
    try:
        names = ("memory.limit_in_bytes", "memory.max")
        next(folder / name for name in names if (folder / name).exists()).write_text(str(limit))
        yield folder
    finally:
        folder.rmdir()


def as_table(results: dict[str, Any]) -> str:
    lines = [
        "| | weights, MB | keys and values, MB | resident, MB | over both | anonymous, MB | beside keys and values |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, case in results["cases"].items():
        weights, kv, resident, anonymous = (case[key] / MB for key in ("weights", "kv", "resident", "anonymous"))
        beside = f"{resident:.0f} | {resident / (weights + kv):.2f} | {anonymous:.0f} | {anonymous - kv:.0f}"
        lines.append(f"| {name} | {weights:.0f} | {kv:.0f} | {beside} |")
    lines += ["", f"The tokenizer by itself: {results['tokenizer'] / MB:.0f} MB, anonymous."]
    limit = results["limited"]
    said = (
        f"failed: {limit['failed']}"
        if "failed" in limit
        else f"a prompt of 16 tokens and 8 more in {limit['seconds']:.0f} s, {limit['resident'] / MB:.0f} MB resident"
    )
    lines += [f"Under a limit of {limit['limit'] / MB:.0f} MB: {said}.", ""]
    lines += ["| one text | mapped, ms | copied, ms | times as fast | mapped, GB/s | copied, GB/s |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    for name, found in results["huge_pages"].items():
        ms = " | ".join(f"{median(found[one]['ms']):.1f}" for one in ("mapped", "copied"))
        speed = " | ".join(f"{median(found[one]['gb_per_s']):.1f}" for one in ("mapped", "copied"))
        ratios = sorted(found["mapped_over_copied"])
        lines += [f"| {name} | {ms} | {median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}) | {speed} |"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
