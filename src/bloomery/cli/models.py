"""The model that a verb's options ask for, ready, whichever engine runs it."""

from dataclasses import asdict, fields
from typing import cast

from bloomery.cli.options import HubOptions, ModelOptions
from bloomery.engine.options import EngineArguments, EngineOptions
from bloomery.errors import UsageError
from bloomery.llm import LLM
from bloomery.log import logger
from bloomery.reference.engine import ReferenceLLM

REFERENCE_TAKES = frozenset(
    {field.name for field in fields(HubOptions)} | {"model", "dtype", "device", "threads", "max_seq_len"}
)
"""Options of models and engines that mean the same whichever engine runs."""
INSTEAD = {
    "max_batch_size": "it runs one prompt at a time; leave it out",
    "quant": "it computes with the weights as the folder has them; leave it out",
    "adapter": "merge it by 'bloomery export --adapter', and give the folder",
    "shape": "write the weights by 'bloomery convert --shape' and 'bloomery export', and give the folder",
}
"""What to do about others, where there is more to say than to leave them out."""


def own(options: ModelOptions, running: EngineOptions, draft: str | None = None) -> LLM:
    """Run by our own engine."""
    return LLM(
        options.model,
        dtype=options.dtype,
        device=options.device,
        quant=options.quant,
        revision=options.revision,
        offline=options.offline,
        token=options.token,
        adapter=options.adapter,
        draft=draft,
        shape=options.shape,
        seed=options.shape_seed,
        **cast(EngineArguments, asdict(running)),
    )


def reference(options: ModelOptions, running: EngineOptions, also: frozenset[str]) -> ReferenceLLM:
    """Run by transformers, which is told what it has an option for.

    Args:
        also: options of the verb itself that do not concern it, or mean the same.

    Raises:
        UsageError: it has none for what was asked.
    """
    for group in (options, running):
        for field in fields(group):
            if field.name in REFERENCE_TAKES | also or getattr(group, field.name) == field.default:
                continue
            advice = INSTEAD.get(field.name, "leave it out")
            raise UsageError(f"--{field.name.replace('_', '-')} is not for --engine transformers: {advice}")
    llm = ReferenceLLM(
        options.model,
        dtype=options.dtype,
        device=options.device,
        max_seq_len=running.max_seq_len,
        revision=options.revision,
        offline=options.offline,
        token=options.token,
    )
    kept_in = str(llm.dtype).removeprefix("torch.")
    logger.info("engine: %s, %s on %s, one prompt at a time", llm.name, kept_in, llm.device)
    return llm
