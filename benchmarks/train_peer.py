"""One peer in a process of its own, so that its peak of memory is its own: python train_peer.py PEER JOB.json."""

import sys
from importlib import import_module
from pathlib import Path

import torch
from peers.job import Job, Pulse


def main(peer: str, path: str) -> int:
    job, module = Job.read(Path(path)), import_module(f"peers.{peer}")
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    module.train(job, Pulse(module.VERSIONS))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
