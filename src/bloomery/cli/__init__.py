"""The command line: a table of verbs, and what they share. Imports a verb's room only when that verb runs."""

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NamedTuple

from bloomery import __version__, log, settings
from bloomery.cli.options import ComputeOptions
from bloomery.errors import BloomeryError, UsageError


class Verb(NamedTuple):
    """A verb's help line, its options as "module:Class", the option (or options) that words without a dash fill, and
    its module, whose `run(options) -> exit code` does the work."""

    summary: str
    options: str
    positional: str
    module: str


VERBS = {
    "generate": Verb("Continue a text.", "bloomery.cli.options:GenerateOptions", "prompts", "bloomery.cli.generate"),
    "bench latency": Verb(
        "Measure how long tokens take.", "bloomery.cli.options:BenchOptions", "model", "bloomery.cli.bench"
    ),
    "bench throughput": Verb(
        "Measure how many tokens many requests get.",
        "bloomery.cli.options:ThroughputOptions",
        "model",
        "bloomery.cli.bench",
    ),
    "fetch": Verb("Fetch a model from the Hub.", "bloomery.cli.options:FetchOptions", "model", "bloomery.cli.fetch"),
    "convert": Verb(
        "Make a store: weights as they are run, pre-cut, mapped.",
        "bloomery.cli.options:ConvertOptions",
        "source target",
        "bloomery.cli.convert",
    ),
    "export": Verb(
        "Write a model in Hugging Face format.",
        "bloomery.cli.options:ExportOptions",
        "source target",
        "bloomery.cli.export",
    ),
    "train": Verb("Train a model from a recipe.", "bloomery.cli.options:TrainOptions", "recipe", "bloomery.cli.train"),
    "train plot": Verb(
        "Draw the curves of training runs.", "bloomery.cli.options:PlotOptions", "runs", "bloomery.cli.plot"
    ),
    "tokenize": Verb(
        "Turn text into token files.", "bloomery.cli.options:TokenizeOptions", "sources", "bloomery.cli.tokenize"
    ),
    "verify": Verb(
        "Check a model's files, and compare its answers with transformers.",
        "bloomery.cli.options:VerifyOptions",
        "model",
        "bloomery.cli.verify",
    ),
    "info": Verb(
        "Describe this machine and a model.", "bloomery.cli.options:InfoOptions", "model", "bloomery.cli.info"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code. 0 done, 1 a check failed, 2 wrong input, 130 Ctrl-C."""
    log.configure()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # whatever the locale: a text may hold any character
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except BloomeryError as error:
        return _failed(" ".join(str(error).split()))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has enough
        _abandon_stdout()
        return 0
    except OSError as error:
        _abandon_stdout()
        return _failed(f"{error.filename or 'output'}: {error.strerror or error}")


def _failed(message: str) -> int:
    log.logger.debug("where it went wrong:", exc_info=True)
    log.logger.error("error: %s", message)
    return 2


def _abandon_stdout() -> None:
    """What could not be written never will be: without this Python tries, and complains, once more as it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    name, *rest = argv
    if rest and f"{name} {rest[0]}" in VERBS:
        name, *rest = f"{name} {rest[0]}", *rest[1:]
    if name not in VERBS:
        near = settings.nearest(name, VERBS)
        raise UsageError(f"no verb '{name}'{near} (verbs: {', '.join(VERBS)})")
    verb = VERBS[name]
    settings.check_environment(_load(verb.options) for verb in VERBS.values())
    options = settings.parse(_load(verb.options), rest, name=name, summary=verb.summary, positional=verb.positional)
    if options is None:
        return 0
    log.configure(options.verbose - options.quiet)
    if options.print_config:
        print(settings.as_recipe(options), end="")
        return 0
    if isinstance(options, ComputeOptions):
        import_module("bloomery.devices").set_threads(options.threads)  # before any thread is there
    return import_module(verb.module).run(options)


def _load(path: str) -> type[settings.VerbOptions]:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def _help() -> str:
    width = max(len(name) for name in VERBS) + 2
    lines = [f"  {name:<{width}}{verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "Usage: bloomery VERB [OPTIONS]",
            "",
            "Run, measure and train BLOOM and its relatives.",
            "",
            *lines,
            "",
            "bloomery VERB --help shows a verb's options; bloomery --version the version.",
        ]
    )
