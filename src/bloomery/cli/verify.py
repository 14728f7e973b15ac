"""`bloomery verify`: a model's files, and our logits and greedy tokens in fp32 against those of transformers."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bloomery.checkpoint.checks import Check, Structure, check_hashes, check_numbers, check_structure, hashed_files
from bloomery.checkpoint.folder import Folder, read_folder
from bloomery.checkpoint.precision import dtype_name
from bloomery.checkpoint.store import open_tensors
from bloomery.checkpoint.tensors import EMBEDDING
from bloomery.cli.options import VerifyOptions
from bloomery.engine.params import SamplingParams
from bloomery.errors import BloomeryError, UsageError
from bloomery.hub.resolve import is_hub_name, resolve
from bloomery.llm import LLM
from bloomery.log import logger
from bloomery.progress import Progress
from bloomery.reference.transformers_engine import TransformersEngine

TEXTS = ("It was the best of times", "Le monde est", "The answer to 6 × 7 is", "def main():\n    ")
TOLERANCE = 1e-5
GAP = 1e-4


@dataclass(frozen=True)
class Row:
    """One prompt's comparison.

    `difference` is the largest one of all logits, `allowed` is 1e-5 × max(1, largest logit). `same_tokens` counts the
    greedy tokens before the first that differs; where the reference's two best were closer than 1e-4 there (`gap`),
    both are right.
    """

    prompt: str
    tokens: int
    difference: float
    allowed: float
    same_tokens: int
    new_tokens: int
    gap: float | None

    @property
    def passed(self) -> bool:
        same = self.same_tokens == self.new_tokens or (self.gap is not None and self.gap < GAP)
        return self.difference <= self.allowed and same


def run(options: VerifyOptions) -> int:
    """Check, compare, print, and return 0 when all is well, else 1."""
    if options.files_only and (options.tokens, options.device) != (VerifyOptions.tokens, VerifyOptions.device):
        raise UsageError("--files-only compares no answers: leave --tokens and --device out")
    found = check_structure(resolve(options.model, options.revision, options.offline, options.token))
    folder = found.folder
    if folder is not None and not options.files_only and not 1 <= options.tokens < folder.config.max_seq_len:
        most = folder.config.max_seq_len - 1
        raise UsageError(f"tokens is {options.tokens}: give 1 to {most}, what the model's context holds")
    checks = [found.check, *_files(found, options)]
    rows: list[Row] = []
    passed = all(check.passed for check in checks)
    if passed and folder is not None and not options.files_only:
        try:
            rows = _answers(folder, options)
        except UsageError:
            raise
        except BloomeryError as error:  # such as logits that are not finite: what has been found is still told
            checks.append(Check("answers", False, str(error)))
            passed = False
    if options.json:
        entries: list[Check | Row] = [*checks, *rows]
        for entry in entries:
            print(json.dumps(asdict(entry) | {"passed": entry.passed}, ensure_ascii=False))
    else:
        _print(checks, rows)
    return 0 if passed and all(row.passed for row in rows) else 1


def _files(found: Structure, options: VerifyOptions) -> list[Check]:
    """What is read of the files on request; what cannot be, has failed."""
    checks: list[Check] = []
    if options.hashes and found.folder is None:
        checks.append(Check("hashes", False, "not compared: the folder cannot be read"))
    elif options.hashes and found.folder is not None:
        files = [found.folder.path / name for name in hashed_files(found.folder)]
        total = sum(file.stat().st_size for file in files if file.is_file())
        with Progress("hashing", total, 0) as progress:
            checks += check_hashes(found.folder, progress.moved)
    if options.nan and (found.folder is None or found.tensors is None):
        checks.append(Check("numbers", False, "not read: the tensors cannot be found"))
    elif options.nan and found.folder is not None and found.tensors is not None:
        checks += check_numbers(found.folder, found.tensors)
    return checks


def _answers(folder: Folder, options: VerifyOptions) -> list[Row]:
    """Our answers beside those of transformers; none where there is nothing to compare with, and stderr says why."""
    source, reason = _reference(folder)
    if source is None:
        logger.info("answers are not compared: %s", reason)
        return []
    if source != folder.path:
        logger.info("answers are compared with those of %s, which the store was made from", source)
    llm = LLM(folder.path, dtype="float32", device=options.device)
    reference = TransformersEngine(source)
    prompts = _prompts(llm, llm.max_seq_len - options.tokens)
    return [_compare(llm, reference, name, ids, options.tokens) for name, ids in prompts]


def _reference(folder: Folder) -> tuple[Path | None, str]:
    """The folder that transformers can read, or why there is none."""
    if find_spec("transformers") is None:
        return None, "transformers is not installed (pip install 'bloomery[reference]')"
    if folder.manifest is None:
        return folder.path, ""
    if folder.manifest.scheme is not None:
        return None, f"the store's weights are rounded to {folder.manifest.scheme.name}: verify what it was made from"
    name, revision = folder.manifest.source.name, folder.manifest.source.revision
    here = None
    with suppress(BloomeryError):
        here = read_folder(resolve(name, revision if is_hub_name(name) else None, offline=True))
    if here is None or here.manifest is not None or here.config != folder.config:
        return None, f"{name}, which the store was made from, is not here, and transformers reads no stores"
    ours, theirs = (open_tensors(one).read(EMBEDDING) for one in (folder, here))
    if ours.dtype != theirs.dtype:
        kept, source = dtype_name(ours.dtype), dtype_name(theirs.dtype)
        return None, f"the store is in {kept}, and {here.path}, which it was made from, in {source}"
    if not torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)):  # a name may by now be another model's
        return None, f"{here.path} has the name of what the store was made from, but other weights"
    return here.path, ""


def _prompts(llm: LLM, most: int) -> list[tuple[str, list[int]]]:
    """A few texts, where there is a tokenizer, and the longest prompt that fits, of ids spread over the vocabulary."""
    prompts = [(text, llm.encode(text)[:most]) for text in TEXTS] if llm.tokenizer else []
    length = min(most, 300)
    size = llm.folder.config.vocab_size
    return [*prompts, (f"{length} ids", [(7919 * place + 13) % size for place in range(length)])]


def _compare(llm: LLM, reference: TransformersEngine, name: str, ids: list[int], new: int) -> Row:
    theirs, ours = reference.logits(ids), llm.logits(ids).cpu()
    wanted = reference.greedy(ids, new)
    got = llm.generate(ids, SamplingParams(max_new_tokens=new, ignore_eos=True))[0].token_ids
    same = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=True)) if a != b), new)
    best = torch.topk(reference.logits(ids + wanted[:same])[-1], 2).values if same < new else None
    return Row(
        prompt=name,
        tokens=len(ids),
        difference=float((theirs - ours).abs().max()),
        allowed=TOLERANCE * max(1.0, float(theirs.abs().max())),
        same_tokens=same,
        new_tokens=new,
        gap=float(best[0] - best[1]) if best is not None else None,
    )


def _print(checks: list[Check], rows: list[Row]) -> None:
    console = Console()
    table = Table("check", "", "")
    for check in checks:
        table.add_row(check.check, "ok" if check.passed else "FAILED", escape(check.detail))
    console.print(table)
    if rows:
        console.print(_table(rows))


def _table(rows: list[Row]) -> Table:
    table = Table("prompt", "tokens", "logits differ by", "allowed", "same greedy tokens", "")
    for row in rows:
        table.add_row(
            repr(row.prompt),
            str(row.tokens),
            f"{row.difference:.1e}",
            f"{row.allowed:.1e}",
            f"{row.same_tokens} of {row.new_tokens}",
            "ok" if row.passed else "DIFFERS",
        )
    return table
