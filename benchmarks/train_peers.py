"""Tokens a second and peak memory of our training step beside other people's, on the same work, in one run.

Every peer trains the same first weights on the same batches with the same learning rates, AdamW (fused) and clipping,
in a process of its own; they take turns in blocks of steps, so that what disturbs the machine disturbs all. Their
losses must agree, else the run fails. Linux only. The table goes to stdout, everything measured into a JSON file.

    python benchmarks/train_peers.py --litgpt-python ~/litgpt/bin/python

litgpt is one of the peers where its own environment is named, which has the same torch:

    python -m venv ~/litgpt && ~/litgpt/bin/pip install torch==2.13.0 litgpt
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.cases import CASES, TINY, Case
from peers.job import Job
from peers.table import as_table, compare

from bloomery.bench.bandwidth import cpu_name, read_bandwidth
from bloomery.checkpoint.export import export_decoder
from bloomery.data.samples import Samples
from bloomery.data.source import Source
from bloomery.data.tokens import narrowest
from bloomery.devices import DTYPES, set_threads
from bloomery.disk.small import make_folder_of, save_json
from bloomery.errors import UsageError
from bloomery.log import logger
from bloomery.model.config import DecoderConfig
from bloomery.train.model import build, describe
from bloomery.train.pace import Pace, Reached
from bloomery.train.recipe.config import TrainConfig
from bloomery.train.recipe.pace_options import Batch, Optim, Schedule
from bloomery.train.recipe.run_options import Data, ModelShape, Run
from bloomery.train.report.flops import StepCost
from bloomery.train.report.peak import measured_peak

HERE = Path(__file__).resolve().parent
PEERS = ("ours", "hugging_face", "plain_loop", "lit")
RULER_BYTES = 256 * 2**20
SEED = 1
WARMUP = 3
"""Steps of the first block, which is not timed: memory is had for the first time, code is compiled."""


def main() -> int:
    options = parse()
    try:
        make_folder_of(options.to)
        options.threads = set_threads(options.threads).count
    except UsageError as error:
        logger.error("%s", error)
        return 1
    left_out = missing(options)
    for peer, why in left_out.items():
        logger.warning("%s is left out: %s", peer, why)
    machine = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    said = {name: value for name, value in vars(options).items() if name not in ("to", "litgpt_python")}
    results: dict[str, Any] = {"machine": machine, "options": said, "left_out": left_out, "cases": []}
    for name in options.shapes:
        for dtype in options.dtypes:
            logger.info("%s in %s", name, dtype)
            results["cases"].append(run_case(name, dtype, options, left_out))
            save_json(options.to, results)
    print(as_table(results))
    apart = [case for case in results["cases"] if not case["agrees"]]
    for case in apart:
        logger.error(
            "%s in %s: the losses differ by %s: not the same work", case["shape"], case["dtype"], case["apart"]
        )
    return 1 if apart else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--peers", nargs="+", choices=PEERS[1:], default=PEERS[1:], help="beside ours")
    parser.add_argument("--steps", type=positive, default=4, help="of a block")
    parser.add_argument("--rounds", type=positive, default=7, help="blocks of each peer")
    parser.add_argument("--threads", type=positive)
    parser.add_argument("--compile", action="store_true", help="torch.compile for every peer")
    parser.add_argument("--litgpt-python", default="", help="the interpreter of an environment with litgpt")
    parser.add_argument("--tiny", action="store_true", help="models of a test, whose speed says nothing")
    parser.add_argument("--to", type=Path, default=HERE / "results" / "train-peers.json")
    return parser.parse_args()


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def missing(options: argparse.Namespace) -> dict[str, str]:
    """Peers that cannot run, and why."""
    if "lit" not in options.peers:
        return {}
    python = options.litgpt_python or sys.executable
    code = "import litgpt, lightning, torch; print(torch.__version__)"
    try:
        asked = subprocess.run([python, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    except OSError as error:
        return {"lit": f"{python} cannot be run ({error.strerror})"}
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        return {"lit": f"{python} has no litgpt ({last}): name its environment with --litgpt-python"}
    if asked.stdout.strip() != torch.__version__:
        return {"lit": f"{python} has torch {asked.stdout.strip()}, and we have {torch.__version__}"}
    return {}


def run_case(name: str, dtype: str, options: argparse.Namespace, left_out: dict[str, str]) -> dict[str, Any]:
    """One shape in one number type: all peers, in turns."""
    case = (TINY if options.tiny else CASES)[name]
    wanted = [peer for peer in ("ours", *options.peers) if peer not in left_out]
    peers = [peer for peer in wanted if peer != "lit" or case.config["model_type"] == "llama"]
    with tempfile.TemporaryDirectory(prefix="train-peers-") as folder:
        job, config = prepare(case, dtype, options, Path(folder))
        ruler = [measure(dtype, options.threads)]
        answers = take_turns(peers, job, Path(folder), options)
        ruler.append(measure(dtype, options.threads))
    tokens = case.sequences * case.seq_len
    found = {
        "shape": name,
        "dtype": dtype,
        "config": case.config,
        "sequences": case.sequences,
        "seq_len": case.seq_len,
        "tokens_of_a_step": tokens,
        "flops_of_a_step": StepCost(config).model(case.sequences, case.seq_len),
        "ruler": ruler,
    }
    return found | compare(answers, tokens * options.steps, found)


def prepare(case: Case, dtype: str, options: argparse.Namespace, folder: Path) -> tuple[Job, DecoderConfig]:
    """First weights, text, samples and rates, as files."""
    (folder / "config.json").write_text(json.dumps(case.config), encoding="utf-8")
    shape, steps = ModelShape(shape=str(folder / "config.json")), WARMUP + options.rounds * options.steps
    described = describe(shape)
    export_decoder(build(described, shape, SEED, torch.device("cpu")), described.family, folder / "model")
    text = text_of(case.config["vocab_size"], 4 * steps * case.sequences * case.seq_len)
    np.save(folder / "tokens.npy", text)
    samples = Samples([Source(text)], seq_len=case.seq_len, seed=SEED)
    batches = [samples.take(step * case.sequences, case.sequences).ids for step in range(steps)]
    np.save(folder / "batches.npy", np.stack(batches))
    job = Job(
        model=str(folder / "model"),
        tokens=str(folder / "tokens.npy"),
        batches=str(folder / "batches.npy"),
        scratch=str(folder),
        rates=rates(steps, case),
        dtype=dtype,
        sequences=case.sequences,
        seq_len=case.seq_len,
        seed=SEED,
        threads=options.threads,
        compile=options.compile,
    )
    return job, described.config


def rates(steps: int, case: Case) -> tuple[float, ...]:
    """Of each step: a few up, and half a cosine down."""
    config = TrainConfig(
        data=Data(train=("text",), valid=("none",)),
        optim=Optim(lr=1e-3),
        schedule=Schedule(warmup=min(5, steps)),
        batch=Batch(size=case.sequences),
        run=Run(out=Path("none"), steps=steps),
    )
    pace = Pace(config, case.seq_len)
    return tuple(pace.learning_rate(Reached(step + 1)) for step in range(steps))


def text_of(vocab_size: int, length: int) -> Any:
    """Tokens that can be learned: each is the one before plus 7, 8, 9 or 10."""
    steps = np.random.default_rng(SEED).integers(7, 11, length)
    return (np.cumsum(steps) % vocab_size).astype(narrowest(vocab_size))


def measure(dtype: str, threads: int) -> dict[str, Any]:
    """What the machine can do now: products of matrices, and reading memory."""
    peak = measured_peak(torch.device("cpu"), DTYPES[dtype])
    read = read_bandwidth([torch.ones(RULER_BYTES // 4)], threads, None)
    return {"gemm_tflops": peak.tflops, "gemm": peak.origin, "gb_per_s": read.gb_per_s, "read": asdict(read)}


def take_turns(peers: list[str], job: Job, folder: Path, options: argparse.Namespace) -> dict[str, list[Any]]:
    """What each peer answered after each of its blocks; who begins a round changes."""
    answers: dict[str, list[Any]] = {peer: [] for peer in peers}
    with ExitStack() as stack:
        running = {}
        for peer in peers:
            python = options.litgpt_python or sys.executable if peer == "lit" else sys.executable
            own = folder / peer
            own.mkdir()
            replace(job, scratch=str(own)).write(own / "job.json")
            running[peer] = stack.enter_context(started(python, peer, own / "job.json"))
            answers[peer].append(answer_of(running[peer], peer))
        for turn in range(options.rounds + 1):
            first = turn % len(peers)
            for peer in peers[first:] + peers[:first]:
                print(options.steps if turn else WARMUP, file=running[peer].stdin, flush=True)
                answers[peer].append(answer_of(running[peer], peer))
    return answers


@contextmanager
def started(python: str, peer: str, job: Path) -> Iterator[subprocess.Popen[str]]:
    """A peer that waits for its turns. It ends by itself after its last step; after an error here it is ended."""
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_DISABLED": "true"}
    command = [python, str(HERE / "train_peer.py"), peer, str(job)]
    environment = os.environ | offline
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()


def answer_of(process: subprocess.Popen[str], peer: str) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{peer} ended with exit code {process.wait()}: see above")
    return json.loads(line)


if __name__ == "__main__":
    sys.exit(main())
