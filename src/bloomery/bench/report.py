"""What was measured as plain values, with what it has to be held against, and as lines to read. Measures nothing but
what the others leave out: the memory's speed, and how long text takes."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

from bloomery.bench.bandwidth import read_bandwidth
from bloomery.bench.measure import Asked, Measured
from bloomery.bench.spread import Spread
from bloomery.completion import Completion
from bloomery.devices import threads
from bloomery.llm import LLM
from bloomery.model.size import kv_bytes, nbytes, weights_read
from bloomery.text.stream import TextStream
from bloomery.text.tokenizer import Tokenizer

Values = dict[str, Any]
IMPORT = "from time import perf_counter as now; began = now(); import bloomery.llm; print(now() - began)"


def measured_values(measured: Measured) -> Values:
    """Spreads in seconds, and the rounds' own numbers, without the texts."""
    values = {name: getattr(measured, name) for name in ("first_token", "per_token", "request", "tokens_per_second")}
    return {name: None if value is None else asdict(value) for name, value in values.items()} | {
        "tokens": measured.tokens,
        "rounds": [{"seconds": one.seconds, "tokens": one.tokens} for one in measured.rounds],
    }


def memory_values(llm: LLM, asked: Asked, per_token: Spread | None) -> Values:
    """Bytes that a decoding step of all requests reads on average, how fast, and how fast the memory is, measured now
    over the same weights; only what is known: a GPU's memory is not measured."""
    values: Values = {"weights (bytes a step)": nbytes(weights_read(llm.decoder)), "KV (bytes a step)": _kv(llm, asked)}
    if per_token is not None:
        values["GB/s"] = (values["weights (bytes a step)"] + values["KV (bytes a step)"]) / per_token.median / 1e9
    weights = [weight for weight in weights_read(llm.decoder) if weight.device.type == "cpu"]
    if weights:
        ruler = read_bandwidth(weights, threads(), None)
        values |= {"read bandwidth (GB/s)": ruler.gb_per_s, "ruler": ruler.ruler}
        if per_token is not None:
            values["share"] = values["GB/s"] / ruler.gb_per_s
    return values


def _kv(llm: LLM, asked: Asked) -> int:
    """Keys and values that a step reads on average: whole blocks, as attention does."""
    runner = llm.engine.runner
    steps = [
        runner.shapes.reach(n) or n for n in range(asked.prompt_length + 1, asked.prompt_length + asked.new_tokens)
    ]
    rows = min(asked.requests, llm.engine.scheduler.max_running)
    read = [kv_bytes(llm.decoder.config, reach, rows, runner.cache.dtype) for reach in steps]
    return sum(read) // len(read) if read else 0


def seconds_to_import() -> float:
    """Of all that `LLM` needs, in a process that has nothing yet."""
    ran = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    return float(ran.stdout)


def seconds_a_token_as_text(tokenizer: Tokenizer | None, completions: Sequence[Completion]) -> float | None:
    """What turning a token into text takes of the time between two; None without a tokenizer."""
    if tokenizer is None:
        return None
    began = perf_counter()
    for one in completions:
        text = TextStream(tokenizer.decode, (), one.prompt_ids)
        for token in one.token_ids:
            text.advance(token)
            text.take()
    return (perf_counter() - began) / sum(len(one.token_ids) for one in completions)


def lines(values: Values) -> list[str]:
    """For people."""
    asked, machine = values["asked"], values["machine"]
    run = f"{asked['rounds']} rounds of {asked['requests']} texts, {values['batch']} at once"
    scheme = values.get("quant", "none")
    form = values["dtype"] if scheme == "none" else f"{scheme}, else {values['dtype']},"
    model = (values["model"], f"{form} on {values['device']}", values["engine"])
    found = [
        " · ".join((*model, f"{machine['threads']} threads ({machine['threads from']})")),
        f"{run}, {asked['prompt_length']} + {asked['new_tokens']} tokens",
    ]
    for name, unit, scale in (
        ("first_token", "ms", 1e3),
        ("per_token", "ms", 1e3),
        ("request", "ms", 1e3),
        ("tokens_per_second", "tok/s", 1),
    ):
        row = values["measured"][name]
        if row is not None:
            numbers = {key: f"{scale * value:,.2f}" for key, value in row.items() if key != "count"}
            found.append(
                f"{name.replace('_', ' '):<18}{unit:<6}{numbers['median']:>10}  p90 {numbers['p90']}  "
                f"p99 {numbers['p99']}  ({numbers['least']}–{numbers['most']}, {row['count']} measured)"
            )
    memory = values.get("memory", {})
    if "GB/s" in memory:
        share = f", {100 * memory['share']:.0f} % of {memory['read bandwidth (GB/s)']:.1f}" if "share" in memory else ""
        found.append(
            f"read a step        {memory['weights (bytes a step)'] / 1e6:,.1f} MB of weights, "
            f"{memory['KV (bytes a step)'] / 1e6:,.1f} MB of keys and values: {memory['GB/s']:.1f} GB/s{share}"
        )
    phases = [f"{name} {_seconds(value)}" for name, value in values["phases"].items() if value is not None]
    return [*found, "phases             " + " · ".join(phases)]


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{1e3 * value:.1f} ms" if value >= 1e-4 else f"{1e6 * value:.0f} µs"
