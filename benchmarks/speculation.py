"""Tokens a second with guessed tokens and without, in one run: prompt lookup on text that repeats, a draft that mostly
agrees, and a draft that never does. What is plain runs twice: the range of the second beside the first is the noise.

    python benchmarks/speculation.py
    python benchmarks/speculation.py --model bigscience/bloom-7b1 --draft bigscience/bloom-560m

All take turns, so that what disturbs the machine disturbs all, and each is compared with the plain run of its round.
Without --model a random one is made, whose first layers are the draft and whose others say little: acceptance is then
what --quiet makes it, and speed is that of the shape. The useless draft is the same one, that means by each token the
one before it. The table goes to stdout, everything measured into a JSON file.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from bloomery import LLM, SamplingParams
from bloomery.bench.bandwidth import cpu_name
from bloomery.checkpoint.export import export_decoder
from bloomery.completion import Completion
from bloomery.devices import set_threads
from bloomery.disk.small import make_folder_of, save_json
from bloomery.errors import BloomeryError
from bloomery.log import logger
from bloomery.model.init import RESIDUAL
from bloomery.train.model import build, describe
from bloomery.train.recipe.run_options import ModelShape

HERE = Path(__file__).resolve().parent
LOUD = 1.25
"""A text in which tokens look most like themselves would be one token again and again."""
PLAIN = ("plain", "plain, repeating")


@dataclass
class Case:
    """A way to generate, and beside which it is measured."""

    name: str
    beside: str
    llm: LLM
    prompts: list[list[int]]
    params: SamplingParams


def main() -> int:
    options = parse()
    try:
        make_folder_of(options.to)
        options.threads = set_threads(options.threads).count
        with tempfile.TemporaryDirectory(prefix="speculation-") as folder:
            cases = prepare(options, Path(folder))
            results = {"machine": machine(options), "options": said(options), "cases": measure(cases, options)}
        save_json(options.to, results)
    except BloomeryError as error:
        logger.error("%s", error)
        return 1
    print(as_table(results["cases"]))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=" ".join((__doc__ or "").split("\n\n")[0].split()))
    parser.add_argument("--model", help="instead of a random one; with --draft")
    parser.add_argument("--draft", help="a smaller model with the same tokens")
    parser.add_argument("--prompt", default="It was the best of times, it was the worst of times", help="with --model")
    parser.add_argument("--hidden", type=positive, default=1024, help="of the random model, as the next ones")
    parser.add_argument("--layers", type=positive, default=24)
    parser.add_argument("--draft-layers", type=positive, default=2)
    parser.add_argument("--vocabulary", type=positive, default=8192)
    parser.add_argument("--quiet", type=float, default=0.05, help="how loud the layers are that the draft lacks")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--tokens", type=positive, default=200)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--threads", type=positive)
    parser.add_argument("--to", type=Path, default=HERE / "results" / "speculation.json")
    options = parser.parse_args()
    if (options.model is None) != (options.draft is None):
        parser.error("--model and --draft belong together: give both or none")
    return options


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def prepare(options: argparse.Namespace, folder: Path) -> list[Case]:
    """All ways to generate, with their models loaded."""
    if options.model is None:
        model, draft = make_pair(options, folder)
    else:
        model, draft = options.model, options.draft
    plain, drafted, useless = (
        LLM(model, draft=one, dtype=options.dtype, max_batch_size=options.batch) for one in (None, draft, draft)
    )
    assert useless.draft is not None
    head = useless.draft.head
    head.weight = torch.nn.Parameter(head.weight.roll(1, 0), requires_grad=False)  # what it says is of other tokens
    if options.model is None:
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randint(options.vocabulary, (options.batch, 32), generator=generator).tolist()
    else:
        prompts = [plain.encode(options.prompt)] * options.batch
    repeating = [(prompt[:8] * 16)[:128] for prompt in prompts]
    params = SamplingParams(max_new_tokens=options.tokens, ignore_eos=True)
    return [
        Case(PLAIN[0], PLAIN[0], plain, prompts, params),
        Case("plain again", PLAIN[0], plain, prompts, params),
        Case("draft", PLAIN[0], drafted, prompts, params),
        Case("useless draft", PLAIN[0], useless, prompts, params),
        Case(PLAIN[1], PLAIN[1], plain, repeating, params),
        Case("prompt lookup, repeating", PLAIN[1], plain, repeating, replace(params, prompt_lookup_num_tokens=10)),
    ]


def make_pair(options: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """A random model, and its first layers as a draft."""
    sizes = {"vocab_size": options.vocabulary, "hidden_size": options.hidden, "seq_len": 128 + options.tokens}
    made = {}
    for name, layers in (("model", options.layers), ("draft", options.draft_layers)):
        shape = ModelShape(
            family="bloom",
            num_layers=layers,
            num_heads=max(1, options.hidden // 64),
            init_std=2 / options.hidden**0.5,
            **sizes,
        )
        described = describe(shape)
        made[name] = described, build(described, shape, 1, torch.device("cpu"))
    (_, model), (_, draft) = made["model"], made["draft"]
    kept = dict(draft.named_parameters())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(RESIDUAL):
                weight.mul_((2 * options.layers) ** 0.5 * (LOUD if name in kept else options.quiet))
            elif name.startswith("embed.norm"):
                weight.mul_(0.5)
            if name in kept:
                kept[name].copy_(weight)
    for name, (described, decoder) in made.items():
        export_decoder(decoder, described.family, folder / name, dtype=getattr(torch, options.dtype))
    return folder / "model", folder / "draft"


def measure(cases: list[Case], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rounds in which each has its turn; the first is not counted. Who begins a round changes."""
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    answers: dict[str, list[Completion]] = {}
    for turn in range(options.rounds + 1):
        first = turn % len(cases)
        for case in cases[first:] + cases[:first]:
            began = perf_counter()
            answers[case.name] = case.llm.generate(case.prompts, case.params)
            if turn:
                seconds[case.name].append(perf_counter() - began)
    return [row(case, seconds, answers) for case in cases]


def row(case: Case, seconds: dict[str, list[float]], answers: dict[str, list[Completion]]) -> dict[str, Any]:
    mine, plain = answers[case.name], answers[case.beside]
    ratios = [b / a for a, b in zip(seconds[case.name], seconds[case.beside], strict=True)]
    count = sum(len(one.token_ids) for one in mine)
    return {
        "name": case.name,
        "tokens": count,
        "tokens_per_second": count / statistics.median(seconds[case.name]),
        "speed_up": statistics.median(ratios),
        "speed_ups": ratios,
        "seconds": seconds[case.name],
        "same_tokens": [one.token_ids for one in mine] == [one.token_ids for one in plain],
        "speculation": [asdict(one.speculation) for one in mine if one.speculation is not None],
    }


def machine(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": options.threads,
    }


def said(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name != "to"}


def as_table(rows: list[dict[str, Any]]) -> str:
    """Medians; the range of the speed-up over all rounds."""
    lines = [
        "| | tok/s | beside plain | range | acceptance | tokens a step | same tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        proposed, accepted, steps = (
            sum(text[name] for text in one["speculation"]) for name in ("proposed", "accepted", "steps")
        )
        share = f"{100 * accepted / proposed:.0f} %" if proposed else "–"
        each = f"{one['tokens'] / steps:.1f}" if steps else "1.0"
        span = f"{min(one['speed_ups']):.2f}–{max(one['speed_ups']):.2f}"
        lines.append(
            f"| {one['name']} | {one['tokens_per_second']:.1f} | {one['speed_up']:.2f} | {span} | {share} | {each} | "
            f"{'yes' if one['same_tokens'] else 'no'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
