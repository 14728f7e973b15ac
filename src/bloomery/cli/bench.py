"""`bloomery bench latency` and `bloomery bench throughput`: one run, measured from outside, in figures that compare."""

import json
from dataclasses import asdict, replace
from time import perf_counter

from bloomery.bench.machine import machine
from bloomery.bench.measure import Asked, measure
from bloomery.bench.report import (
    Values,
    lines,
    measured_values,
    memory_values,
    seconds_a_token_as_text,
    seconds_to_import,
)
from bloomery.cli.models import own, reference
from bloomery.cli.options import BenchOptions, ThroughputOptions
from bloomery.devices import pick_threads
from bloomery.disk.small import make_folder_of, save_json
from bloomery.engine.options import EngineOptions
from bloomery.errors import UsageError
from bloomery.llm import LLM
from bloomery.reference.engine import ReferenceLLM

ANY_ENGINE = frozenset(
    {"batch", "prompt_length", "new_tokens", "rounds", "requests", "seed", "engine", "to", "json", "running"}
)
"""Options that mean the same whichever engine runs."""


def run(options: BenchOptions) -> int:
    """Measure, print, and write what was asked for."""
    _check(options)
    before = machine(pick_threads(options.threads))  # before anything of ours makes it busy
    running = replace(options.running, max_batch_size=options.batch)
    began = perf_counter()
    llm = own(options, running) if options.engine == "bloomery" else reference(options, options.running, ANY_ENGINE)
    loaded = perf_counter() - began
    warmed_up = llm.engine.warmed_up if isinstance(llm, LLM) else 0.0
    asked = Asked(
        requests=options.requests if isinstance(options, ThroughputOptions) else options.batch,
        prompt_length=options.prompt_length,
        new_tokens=options.new_tokens,
        rounds=options.rounds,
        vocab_size=llm.folder.config.vocab_size,
        seed=options.seed,
    )
    measured = measure(llm, asked)
    values: Values = {
        "model": str(options.shape or options.model),
        "dtype": str(llm.dtype).removeprefix("torch."),
        "quant": llm.quant if isinstance(llm, LLM) else "none",
        "device": str(llm.device),
        "engine": llm.name if isinstance(llm, ReferenceLLM) else "bloomery",
        "batch": options.batch,
        "asked": asdict(asked),
        "running": None if isinstance(llm, ReferenceLLM) else asdict(running),
        "machine": before,
        "phases": {
            "import": seconds_to_import(),
            "load": loaded - warmed_up,
            "every shape once": warmed_up or None,
            "first round": measured.warm_up,
            "text, a token": seconds_a_token_as_text(llm.tokenizer, measured.rounds[-1].completions),
        },
        "measured": measured_values(measured),
        "memory": memory_values(llm, asked, measured.per_token) if isinstance(llm, LLM) else {},
    }
    print(json.dumps(values, ensure_ascii=False) if options.json else "\n".join(lines(values)), flush=True)
    if options.to is not None:
        save_json(options.to, values)
    return 0


def _check(options: BenchOptions) -> None:
    """Raises UsageError for numbers below 1, options that say the same twice, and a file that has no place."""
    for name in ("batch", "prompt_length", "new_tokens", "rounds", "requests"):
        if getattr(options, name, 1) < 1:
            raise UsageError(f"{name} is {getattr(options, name)}: give at least 1")
    if options.running != replace(options.running, max_batch_size=EngineOptions().max_batch_size):
        raise UsageError(
            f"max_batch_size {options.running.max_batch_size} is --batch here, which is {options.batch}: drop it"
        )
    if options.engine != "bloomery" and options.batch > 1:
        raise UsageError(f"--engine {options.engine} runs one prompt at a time: give --batch 1")
    if options.shape_seed is not None and options.shape is None:
        raise UsageError("--shape-seed is for --shape: for the prompts, give --seed")
    if options.to is not None:
        make_folder_of(options.to)
