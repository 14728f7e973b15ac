"""Generating on a CPU beside llama.cpp, CTranslate2 and transformers: one checkpoint, the same threads and prompts.

    python benchmarks/cpu_peers.py --peers ~/peers --install
    python benchmarks/cpu_peers.py --peers ~/peers --quick
    python benchmarks/cpu_peers.py --peers ~/peers --work ~/converted --shape bloom-1b7

--install makes the environments ~/peers/llama and ~/peers/ctranslate2, if they are not there, which is

    python -m venv ~/peers/llama
    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON ..." \\
        ~/peers/llama/bin/pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36 gguf==0.19.0
    python -m venv ~/peers/ctranslate2
    ~/peers/ctranslate2/bin/pip install ctranslate2==4.8.5

with all the instructions that this processor has. transformers is this environment's, unless there is
~/peers/transformers. A checkpoint with random weights is made and converted for each engine, by its own converter; each
engine then waits in a process of its own for its turns, and only one works at a time.

Measured are a step of 1, 8 and 32 texts, the time to the first token behind 128, 512 and 1024 tokens, loading, and the
largest memory of the process; between the rounds the memory's speed, and torch's bf16 products. What is compared is
compared within a round. An engine that cannot be had, fails or miscounts is named in the results. Linux only. Tables go
to stdout, everything measured into a JSON file, and a picture beside it.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peers.cpu.checkpoint import converted, interpreters, make_checkpoint
from peers.cpu.engines import ENGINES, NotAvailable
from peers.cpu.figures import agreement, summary
from peers.cpu.install import install
from peers.cpu.plot import draw
from peers.cpu.rounds import CHECKED, Heat, measures, run_rounds
from peers.cpu.started import Running, started
from peers.cpu.table import as_tables
from peers.cpu.turn import Job

from bloomery.bench.bandwidth import read_bandwidth
from bloomery.bench.machine import machine
from bloomery.checkpoint.folder import read_folder
from bloomery.devices import memory_left, set_threads
from bloomery.disk.small import make_folder_of, save_json
from bloomery.errors import BloomeryError
from bloomery.log import configure, logger
from bloomery.model.size import parameter_count
from bloomery.progress import as_size
from bloomery.train.report.peak import measured_peak

HERE = Path(__file__).resolve().parent
RULER_BYTES = 1 << 30
EACH = 1 << 30
"""Bytes that an engine takes beside its weights: libraries, keys and values, and what a prompt needs on its way."""
ROOM = 0.8
"""Of the memory that is left: what engines that run together may need at most."""


def main() -> int:
    options = parse()
    configure()
    left_out: dict[str, str] = {}
    if options.install:
        failed = install(options.peers, tuple({ENGINES[name].venv for name in options.engines}))
        left_out |= {n: f"not installed: {failed[e.venv]}" for n, e in chosen(options) if e.venv in failed}
    try:
        make_folder_of(options.to)
        with tempfile.TemporaryDirectory(prefix="cpu-peers-") as scratch:
            work = (options.work or Path(scratch)) / Path(options.shape).stem
            work.mkdir(parents=True, exist_ok=True)
            results = compare(options, work, Path(scratch), left_out)
        save_json(options.to, results)
    except BloomeryError as error:
        logger.error("%s", error)
        return 1
    draw(results, options.to.with_suffix(".png"))
    print(as_tables(results))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peers", type=Path, help="the folder of the peers' environments")
    parser.add_argument("--install", action="store_true", help="make those that are not there")
    parser.add_argument("--shape", default="bloom-560m", help="a published shape of BLOOM, or a config.json")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--steps", type=positive, default=32, help="of decoding in each turn; at least 8")
    parser.add_argument("--threads", type=positive)
    parser.add_argument("--quick", action="store_true", help="two rounds of 8 steps, which say little")
    parser.add_argument("--apart", action="store_true", help="do not run forms of different bits together")
    parser.add_argument("--work", type=Path, help="keeps what was converted; else it is thrown away")
    parser.add_argument("--to", type=Path, default=HERE / "results" / "cpu-peers.json")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps = 2, 8
    if options.steps < CHECKED:
        parser.error(f"--steps {options.steps} are too few to see whether texts agree: give {CHECKED} or more")
    if options.install and options.peers is None:
        parser.error("--install needs a place: name it with --peers")
    return options


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def chosen(options: argparse.Namespace) -> list[tuple[str, Any]]:
    return [(name, ENGINES[name]) for name in options.engines]


def compare(options: argparse.Namespace, work: Path, scratch: Path, left_out: dict[str, str]) -> dict[str, Any]:
    """All heats, and what is made of them."""
    threads, shapes = set_threads(options.threads), measures(options.steps)
    before = machine(threads)
    checkpoint = make_checkpoint(options.shape, work)
    config = read_folder(checkpoint).config
    pythons, paths = interpreters(options.peers), {}
    for name, entry in chosen(options):
        if name in left_out:
            continue
        try:
            paths[name] = converted(entry, checkpoint, pythons)
        except NotAvailable as error:
            left_out[name] = f"not available: {error}"
    engines: dict[str, Any] = {}
    heats, texts = [], {}
    for names in together(list(paths), parameter_count(config), options.apart):
        jobs = {n: Job(str(paths[n]), ENGINES[n].form, threads.count, tuple(shapes.values())) for n in names}
        with ExitStack() as stack:
            running = start(stack, jobs, pythons, scratch, left_out)
            heat = run_rounds(running, shapes, options.rounds, config.vocab_size, lambda: ruler(threads.count))
        engines |= {name: said(one, heat) for name, one in running.items()}
        left_out |= heat.left_out
        for measure, found in heat.texts.items():
            texts.setdefault(measure, {}).update(found)
        heats.append({"engines": names, "rounds": heat.rounds, "rulers": heat.rulers})
    results = {
        "machine": before,
        "threads": threads.count,
        "options": {n: str(v) if isinstance(v, Path) else v for n, v in vars(options).items() if n in KEPT},
        "config": asdict(config),
        "measures": {name: shape._asdict() for name, shape in shapes.items()},
        "engines": {name: engines[name] for name in options.engines if name in engines},
        "left_out": left_out,
        "agreement": agreement(texts, f"decode {CHECKED}", "decode 1", CHECKED),
        "heats": heats,
    }
    return results | {"summary": summary(results)}


KEPT = ("shape", "engines", "rounds", "steps", "quick", "apart")
"""Options that say what was measured; the others say where things lie on a machine."""


def together(names: list[str], parameters: int, apart: bool) -> list[list[str]]:
    """Engines by heats: all at once where they find room, else those whose weights have as many bits, which are the
    ones that are compared."""
    needed, left = needs(names, parameters), memory_left(torch.device("cpu"))
    if not apart and (left is None or needed <= ROOM * left):
        return [names] if names else []
    if not apart:
        logger.info(
            "all engines at once need %s, and %s are left: they run in heats", as_size(needed), as_size(left or 0)
        )
    bits = dict.fromkeys(ENGINES[name].bits for name in names)
    return [[name for name in names if ENGINES[name].bits == one] for one in bits]


def needs(names: Iterable[str], parameters: int) -> int:
    return sum(round(ENGINES[name].bytes * parameters) + EACH for name in names)


def start(
    stack: ExitStack, jobs: dict[str, Job], pythons: dict[str, str], scratch: Path, left_out: dict[str, str]
) -> dict[str, Running]:
    """Those that can be loaded, one after the other."""
    running = {}
    for name, job in jobs.items():
        entry = ENGINES[name]
        try:
            one = started(name, pythons[entry.venv], f"peers.cpu.{entry.module}", job, scratch)
            running[name] = stack.enter_context(one)
        except NotAvailable as error:
            left_out[name] = f"not available: {error}"
            logger.warning("%s is not available: %s", name, error)
    return running


def said(one: Running, heat: Heat) -> dict[str, Any]:
    """What an engine told of itself, and its memory in the end."""
    found = dict(one.ready)
    if one.name in heat.peaks:
        found["peak_bytes"] = heat.peaks[one.name]
        found["first_s"] = heat.firsts[one.name]
    return found


def ruler(threads: int) -> dict[str, float]:
    """What the machine can do now: reading memory, and products of matrices."""
    read = read_bandwidth([torch.ones(RULER_BYTES // 4)], threads, None)
    return {"gb_per_s": read.gb_per_s, "bf16_tflops": measured_peak(torch.device("cpu"), torch.bfloat16).tflops}


if __name__ == "__main__":
    sys.exit(main())
