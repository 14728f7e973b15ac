"""A small language model measured against the text it has learned from: how well it predicts a held-out text, beside
compressors on the same bytes, and how its samples read.

    python benchmarks/built_in_model.py dickens --train a.txt b.txt --held-out hard-times.txt --to results.json

The tables go to stdout, everything measured and all samples into a JSON file. Files are taken as they are: whatever was
done to the text before training is to be done before this, too. PPMd needs pyppmd, and is left out without it. The
exit status is 0 when all could be measured, whatever the figures are; what is left out is named and does not count.
"""

import argparse
import platform
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from quality import copies, loops, words
from quality.baselines import measure_baselines
from quality.held_out import HeldOut
from quality.samples import draw, judge, stretches
from quality.table import as_tables

from bloomery import LLM
from bloomery.data.documents import read_texts
from bloomery.devices import set_threads
from bloomery.disk.small import make_folder_of, save_json
from bloomery.errors import BloomeryError, UsageError
from bloomery.log import configure, logger
from bloomery.model.size import parameter_count

TEMPERATURE = 0.8


class Texts:
    """What the model has learned from, by file and in order, and what it is measured on.

    Raises:
        UsageError: a file cannot be read, is empty, no UTF-8 or named twice, or the held-out text is one of the others.
    """

    def __init__(self, training: list[Path], held_out: Path) -> None:
        self.file = held_out
        twice = next((file for file in training if training.count(file) > 1), None)
        if twice is not None:
            raise UsageError(f"--train names {twice} twice: leave it out once")
        self.training = dict(zip(map(str, training), read_texts(training), strict=True))
        (self.held_out,) = read_texts([held_out])
        same = next((name for name, text in self.training.items() if text == self.held_out), None)
        if same is not None:
            raise UsageError(f"{held_out} is also the training text {same}: held-out text must not be learned from")
        empty = next((name for name, text in [*self.training.items(), (held_out, self.held_out)] if not text), None)
        if empty is not None:
            raise UsageError(f"{empty} is empty: leave it out, or name a text")

    def described(self) -> dict[str, Any]:
        """Names without folders, sizes and hashes."""
        training = [_text_row(Path(name), text) for name, text in self.training.items()]
        return {"training": training, "held_out": _text_row(self.file, self.held_out)}


def main() -> int:
    options = parse()
    configure()
    try:
        make_folder_of(options.to)
        options.threads = set_threads(options.threads).count
        texts = Texts(options.train, options.held_out)
        llm = LLM(options.model, max_batch_size=options.samples)
        held_out = HeldOut(LLM(options.model, dtype="float32"), options.held_out)
    except BloomeryError as error:
        logger.error("%s", error)
        return 1
    results: dict[str, Any] = {
        "machine": {"python": platform.python_version(), "torch": torch.__version__, "threads": options.threads},
        "model": describe(llm, options.model),
        "texts": texts.described(),
        "left_out": {},
        "not_measured": {},
    }
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "baselines": lambda: baselines(texts),
        "samples": lambda: {"samples": read_samples(llm, held_out, texts, options)},
        "held-out text": lambda: {"held_out": held_out.measure()},
    }
    for name, measure in parts.items():
        logger.info("measuring: %s", name)
        try:
            results |= measure()
        except BloomeryError as error:
            logger.error("%s: %s", name, error)
            results["not_measured"][name] = str(error)
        save_json(options.to, results)
    for name, why in results["left_out"].items():
        logger.warning("%s is left out: %s", name, why)
    print(as_tables(results))
    return 1 if results["not_measured"] else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=" ".join((__doc__ or "").split("\n\n")[0].split()))
    parser.add_argument("model", help="a built-in model, a folder or a name on the Hub")
    parser.add_argument("--train", nargs="+", type=Path, required=True, help="the texts that it has learned from")
    parser.add_argument("--held-out", type=Path, required=True, help="a text that it has not seen")
    parser.add_argument("--to", type=Path, required=True, help="the JSON file")
    parser.add_argument("--samples", type=positive, default=20, help=f"drawn at temperature {TEMPERATURE}")
    parser.add_argument("--sample-tokens", type=positive, default=400, help="of each sample, at most")
    parser.add_argument("--threads", type=positive)
    return parser.parse_args()


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def describe(llm: LLM, name: str) -> dict[str, Any]:
    """What the model is, and how large."""
    size = sum(file.stat().st_size for file in llm.folder.weights)
    return {
        "name": name,
        "family": llm.folder.family.name,
        "parameters": parameter_count(llm.folder.config),
        "context": llm.max_seq_len,
        "vocabulary": llm.folder.config.vocab_size,
        "weights_bytes": size,
        "weights_mb": size / 1e6,
        "weights_dtype": str(llm.dtype).removeprefix("torch."),
        "weights_sha256": [sha256(file.read_bytes()).hexdigest() for file in llm.folder.weights],
    }


def baselines(texts: Texts) -> dict[str, Any]:
    rows, left_out = measure_baselines([text.encode() for text in texts.training.values()], texts.held_out.encode())
    return {"baselines": rows, "left_out": left_out}


def read_samples(llm: LLM, held_out: HeldOut, texts: Texts, options: argparse.Namespace) -> dict[str, Any]:
    """Samples, and as much of the held-out text for comparison."""
    known = words.vocabulary(texts.training.values())
    drawn = judge(llm, draw(llm, options.samples, options.sample_tokens, TEMPERATURE), texts.training, known)
    compared = stretches(llm, held_out.source.ids.tolist(), options.samples, options.sample_tokens)
    return {
        "settings": {
            "count": options.samples,
            "tokens": options.sample_tokens,
            "temperature": TEMPERATURE,
            "dtype": str(llm.dtype).removeprefix("torch."),
            "loop_tokens": loops.LEAST,
        },
        "definitions": {"word": words.DEFINITION, "loop": loops.DEFINITION, "copy": copies.DEFINITION},
        "drawn": drawn,
        "held_out_stretches": judge(llm, compared, texts.training, known),
    }


def _text_row(file: Path, text: str) -> dict[str, Any]:
    data = text.encode()
    return {"file": file.name, "bytes": len(data), "sha256": sha256(data).hexdigest()}


if __name__ == "__main__":
    sys.exit(main())
