"""A loop in the manner of nanoGPT's train.py: a module of one page, all logits at once, torch's cross entropy."""

import torch
from peers.job import Job, Pulse, adamw, set_rate
from peers.plain_model import load_plain
from torch import nn
from torch.nn.functional import cross_entropy

VERSIONS = {"torch": torch.__version__}


def train(job: Job, pulse: Pulse) -> None:
    model: nn.Module = load_plain(job.model).train()
    optimizer, samples = adamw(model, job), job.samples()
    forward = torch.compile(model) if job.compile else model
    pulse.ready()
    for step, rate in enumerate(job.rates):
        set_rate(optimizer, rate)
        inputs, targets = job.batch(samples, step)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=job.bf16):
            logits = forward(inputs)
            loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), job.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pulse.stepped(loss.item())
