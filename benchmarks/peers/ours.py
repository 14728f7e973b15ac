"""Our training step on our data, as the Trainer drives them; nothing is measured or saved between steps."""

import numpy as np
import torch
from peers.job import Job, Pulse

import bloomery
from bloomery.data.samples import Samples
from bloomery.data.source import Source
from bloomery.devices import DTYPES, keep_freed_memory
from bloomery.train.loss import SequenceLoss
from bloomery.train.model import build, describe
from bloomery.train.optim import Optimizers
from bloomery.train.passes import compile_
from bloomery.train.recipe.pace_options import Optim
from bloomery.train.recipe.run_options import ModelShape
from bloomery.train.step import TrainStep

VERSIONS = {"bloomery": bloomery.__version__, "torch": torch.__version__}


def train(job: Job, pulse: Pulse) -> None:
    keep_freed_memory()
    shape = ModelShape(start=job.model)
    decoder = build(describe(shape), shape, job.seed, torch.device("cpu"))
    samples = Samples([Source(np.load(job.tokens, mmap_mode="r"))], seq_len=job.seq_len, seed=job.seed)
    rule = Optim(
        lr=max(job.rates),
        beta1=job.beta1,
        beta2=job.beta2,
        eps=job.eps,
        weight_decay=job.weight_decay,
        clip=job.clip,
    )
    optimizers = Optimizers(decoder.named_parameters(), rule)
    take = TrainStep(SequenceLoss(decoder, DTYPES[job.dtype]), optimizers, clip=rule.clip, seed=job.seed)
    if job.compile:
        compile_(decoder)
    pulse.ready()
    for step, rate in enumerate(job.rates):
        windows = samples.take(step * job.sequences, job.sequences)
        pulse.stepped(take(step, rate, torch.from_numpy(windows.ids)).loss)
