"""litgpt: its model, its Fabric and its chunked loss, step by step as its pretrain.py; on the Llama shape alone. Runs
in an environment of its own: litgpt and bloomery ask for different versions of huggingface_hub.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.utils import chunked_cross_entropy
from peers.job import Job, Pulse, adamw, set_rate
from safetensors.torch import load_file

VERSIONS = {"litgpt": version("litgpt"), "lightning": lightning.__version__, "torch": torch.__version__}


def train(job: Job, pulse: Pulse) -> None:
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed" if job.bf16 else "32-true")
    model = fabric.setup(load_lit(job))
    optimizer = fabric.setup_optimizers(adamw(model, job))
    samples = job.samples()
    pulse.ready()
    for step, rate in enumerate(job.rates):
        set_rate(optimizer, rate)
        inputs, targets = job.batch(samples, step)
        loss = chunked_cross_entropy(model(inputs), targets)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=job.clip)
        optimizer.step()
        optimizer.zero_grad()
        pulse.stepped(loss.item())


def load_lit(job: Job) -> Any:
    """With the weights of the folder, by litgpt's own conversion."""
    raw = json.loads((Path(job.model) / "config.json").read_text(encoding="utf-8"))
    config = Config(
        block_size=job.seq_len,
        vocab_size=raw["vocab_size"],
        padded_vocab_size=raw["vocab_size"],
        n_layer=raw["num_hidden_layers"],
        n_head=raw["num_attention_heads"],
        n_query_groups=raw["num_key_value_heads"],
        n_embd=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        norm_class_name="RMSNorm",
        norm_eps=raw["rms_norm_eps"],
        mlp_class_name="LLaMAMLP",
        rotary_percentage=1.0,
        rope_base=int((raw.get("rope_parameters") or raw)["rope_theta"]),
        parallel_residual=False,
        bias=False,
    )
    model, weights = GPT(config), {}
    copy_weights_hf_llama(config, {}, weights, load_file(Path(job.model) / "model.safetensors"))
    model.load_state_dict(weights)
    return torch.compile(model) if job.compile else model
