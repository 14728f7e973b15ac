"""An engine as its options say: built, compiled and warmed up. Knows no request."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from bloomery.devices import pick_cache_dtype, pick_dtype
from bloomery.engine.engine import Engine
from bloomery.engine.options import EngineOptions
from bloomery.engine.shapes import choose_shapes
from bloomery.errors import UsageError
from bloomery.log import logger
from bloomery.model.cache import Beginning
from bloomery.model.decoder import Block, Decoder
from bloomery.model.mlp import Experts
from bloomery.ops.attention import BLOCK
from bloomery.ops.choice import prepare_to_compile
from bloomery.quant.swap import keep_activations_


def start_engine(
    decoder: Decoder,
    options: EngineOptions,
    *,
    max_seq_len: int,
    beginning: Beginning | None = None,
    draft: Decoder | None = None,
) -> Engine:
    """An engine that is ready.

    Args:
        max_seq_len: positions of one request, those of the beginning included: what the options say, or the model.

    Raises:
        UsageError: options contradict this length, there is no compiler, no graphs, or not enough memory.
    """
    if options.graphs != "off":
        why = "a CPU has none" if decoder.device.type == "cpu" else "those of a GPU are not captured yet"
        raise UsageError(f"graphs {options.graphs}: {why}; leave graphs off")
    models = (decoder,) if draft is None else (decoder, draft)
    exact = [keep_activations_(model) for model in models] if options.exact_activations else [True]
    if not any(exact):
        raise UsageError("exact_activations is for packed weights, and there are none: drop it, or give quant")
    shapes = choose_shapes(
        options.shapes,
        options.bucket,
        batch=options.max_batch_size,
        step=options.max_step_tokens,
        context=max_seq_len,
    )
    most = options.max_batch_size * -(-max_seq_len // BLOCK)
    held = options.cache_positions
    engine = Engine(
        decoder,
        max_seq_len=max_seq_len,
        max_batch_size=options.max_batch_size,
        max_step_tokens=options.max_step_tokens,
        blocks=most if held is None else min(most, -(-held // BLOCK)),
        beginning=beginning,
        draft=draft,
        shapes=shapes,
        cache_dtype=pick_cache_dtype(options.cache_dtype),
        softmax_dtype=pick_dtype(options.softmax_dtype),
        record=not options.compile,
    )
    if options.compile:
        for model in models:
            compile_(model, fixed=options.shapes == "static")
    if options.warmup:
        logger.info("warmed up %d shapes of a step in %.2f s", len(shapes.steps()), engine.warm_up())
    return engine


def pick_context(asked: int | None, limit: int, taken: int) -> int:
    """The most tokens of a sequence, of which `taken` go to an adapter. Raises UsageError where none are left, or the
    model has not so many."""
    if asked is not None and not taken + 2 <= asked <= limit:
        why = f" ({taken} go to the adapter's virtual tokens)" if taken else ""
        raise UsageError(
            f"max_seq_len is {asked}: give {taken + 2} to {limit}, the model's own limit{why}, or leave it out"
        )
    return asked or limit


def compile_(decoder: Decoder, *, fixed: bool) -> None:
    """Compile every block but its attention, whose groups of rows differ from step to step. Blocks are alike, so that
    the code of one is that of all.

    Args:
        fixed: make code for every number of tokens, of which there must be few; else one for all numbers.

    Raises:
        UsageError: torch finds no compiler that works.
    """

    def probe(x: Tensor) -> Tensor:
        return x.exp() + 1

    try:
        torch.compile(probe)(torch.zeros(2, device=decoder.device))
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"torch.compile does not work here ({reason}): install a C++ compiler, or drop compile"
        ) from None
    prepare_to_compile()
    for block in cast(Iterable[Block], decoder.blocks):
        block.attn.forward = torch.compiler.disable(block.attn.forward)  # type: ignore[method-assign]
        if isinstance(block.mlp, Experts):
            # How many tokens go to which expert follows from the tokens: no shape of a step fixes it.
            block.mlp.forward = torch.compiler.disable(block.mlp.forward)  # type: ignore[method-assign]
            for expert in block.mlp.experts:
                expert.compile(dynamic=True)
        block.compile(dynamic=not fixed)
