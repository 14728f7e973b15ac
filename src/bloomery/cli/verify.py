"""`bloomery verify`: our logits and greedy tokens against those of transformers, in fp32, as a table."""

import json
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table

from bloomery.cli.options import VerifyOptions
from bloomery.engine.params import SamplingParams
from bloomery.errors import UsageError
from bloomery.llm import LLM
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
    """Compare, print, and return 0 when everything agrees, else 1."""
    llm = LLM(options.model, dtype="float32", device=options.device)
    room = llm.max_seq_len
    if not 1 <= options.tokens < room:
        raise UsageError(f"tokens is {options.tokens}: give 1 to {room - 1}, what the model's context holds")
    reference = TransformersEngine(llm.folder.path)
    rows = [_compare(llm, reference, name, ids, options.tokens) for name, ids in _prompts(llm, room - options.tokens)]
    if options.json:
        for row in rows:
            print(json.dumps(asdict(row) | {"passed": row.passed}, ensure_ascii=False))
    else:
        Console().print(_table(rows))
    return 0 if all(row.passed for row in rows) else 1


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
