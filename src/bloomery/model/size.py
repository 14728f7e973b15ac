"""How many bytes a decoder takes, from its configuration or as it is, and how many a step reads. Arithmetic only.

Letters as in `decoder.py`, and L layers, F feed-forward size, N tokens of a step, S positions that they attend to.
"""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from bloomery.model.config import DecoderConfig
from bloomery.model.decoder import Decoder
from bloomery.model.mlp import Experts
from bloomery.ops.attention import BLOCK
from bloomery.ops.kept import vector_bytes

EXPERT = re.compile(r"\.experts\.(\d+)\.")
FP32 = 4
"""Bytes of a number in logits and position biases, whatever the model computes in."""


def parameter_count(config: DecoderConfig) -> int:
    """Numbers of all weights; those of a tied head count once."""
    tables = config.vocab_size * config.hidden_size * (1 if config.tied_head else 2)
    if config.positions == "learned":
        tables += config.max_seq_len * config.hidden_size
    first = 2 * config.hidden_size if config.embed_norm else 0
    head = config.vocab_size if config.head_bias else 0
    return tables + first + config.num_layers * _block(config) + _norm(config) + head


def bytes_read(config: DecoderConfig, sizes: Mapping[str, int]) -> int:
    """Bytes that a step of one token reads: all but tables of which it reads a row, and experts it does not take.

    Args:
        sizes: bytes of each parameter by name. An embedding is read where the head has no parameter of its own.
    """

    def is_read(name: str) -> bool:
        expert = EXPERT.search(name)
        if expert is not None:  # they are of one size: any will do
            return int(expert[1]) < config.experts_per_token
        return name != "embed.positions.weight" and (name != "embed.tokens.weight" or "head.weight" not in sizes)

    return sum(size for name, size in sizes.items() if is_read(name))


def kv_token_bytes(config: DecoderConfig, kept: torch.dtype) -> int:
    """Keys and values of one position in all layers, with the scales of those that are kept in 8 bits."""
    return 2 * config.num_layers * config.num_kv_heads * vector_bytes(config.head_dim, kept)


def kv_bytes(config: DecoderConfig, positions: int, sequences: int, kept: torch.dtype) -> int:
    """Keys and values of so many sequences, in whole blocks."""
    return sequences * -(-positions // BLOCK) * BLOCK * kv_token_bytes(config, kept)


def activation_bytes(
    config: DecoderConfig,
    tokens: int,
    positions: int,
    itemsize: int,
    kept: torch.dtype,
    logits: int = 1,
    *,
    native: bool = False,
) -> int:
    """About the most that a step of N = `tokens` holds at one time beside weights and cache.

    The position bias of all layers, and the largest of what making it, an attention, a feed-forward or the logits take.

    Args:
        positions: S, of one sequence.
        itemsize: bytes of a number of the hidden states.
        kept: what keys and values are kept in.
        logits: positions whose logits are wanted at once.
        native: our own kernel attends, which keeps no biases, no scores and no copies.
    """
    scores = tokens * -(-positions // BLOCK) * BLOCK
    alibi = config.positions in ("alibi", "alibi_coarse")
    bias = scores * FP32 * (config.num_heads if alibi else config.num_heads // config.num_kv_heads)
    # Before it is masked, or before it is repeated; and distances in int64, and the mask.
    making = (bias if alibi else scores * FP32) + scores * (8 + 1)
    if native:
        bias = making = 0
    hidden = tokens * config.hidden_size * itemsize
    heads = tokens * config.num_heads * config.head_dim
    shared = tokens * config.num_kv_heads * config.head_dim
    turned = (heads + shared) * itemsize if config.rotary is not None else 0
    fused = (heads + 2 * shared) * itemsize
    # Queries of heads that share keys lie apart in the fused projection, unless they have been turned.
    gathered = heads * itemsize if config.rotary is None and config.num_heads > config.num_kv_heads else 0
    # PyTorch's attention has a sequence's blocks put together, numbers of 8 bits on a CPU in fp32.
    computed = FP32 if kept == torch.int8 else kept.itemsize
    together = 2 * -(-positions // BLOCK) * BLOCK * config.num_kv_heads * config.head_dim * computed
    attended = gathered + heads * itemsize if native else heads * (2 * computed + itemsize) + together
    attention = 2 * hidden + fused + turned + attended
    wide = tokens * config.ffn_size * itemsize * (3 if config.gated_mlp else 2)
    # The stream before and after attention, what was added, and both normed copies; experts gather tokens and add up.
    feed_forward = wide + hidden * (5 if config.num_experts == 1 else 7)
    vocabulary = logits * config.vocab_size * (FP32 if itemsize == FP32 else FP32 + itemsize)
    return max(bias + making, bias + attention, bias + feed_forward, vocabulary + hidden)


def _block(config: DecoderConfig) -> int:
    norms = _norm(config) * (1 if config.residual == "parallel_one_norm" else 2)
    heads, groups, size = config.num_heads, config.num_kv_heads, config.head_dim
    fused, out = (heads + 2 * groups) * size, config.hidden_size
    attention = fused * config.hidden_size + out * heads * size + (fused + out if config.attn_bias else 0)
    router = config.num_experts * config.hidden_size if config.num_experts > 1 else 0
    return norms + attention + router + config.num_experts * _feed_forward(config)


def _feed_forward(config: DecoderConfig) -> int:
    """Of one expert, or the only one."""
    inward = 2 if config.gated_mlp else 1
    biases = inward * config.ffn_size + config.hidden_size if config.mlp_bias else 0
    return (inward + 1) * config.hidden_size * config.ffn_size + biases


def _norm(config: DecoderConfig) -> int:
    return config.hidden_size * (1 if config.norm == "rms" else 2)


def weights_read(decoder: Decoder) -> Iterator[Tensor]:
    """The weights that a step of one token reads from end to end: all but tables of which it reads single rows, and
    all but as many experts as a token takes.

    A tied embedding counts where it is the head: a packed head has numbers of its own.
    """
    unread = {id(table.weight) for table in (decoder.embed.tokens, decoder.embed.positions) if table is not None}
    unread -= {id(decoder.head.weight)}
    for block in decoder.blocks:
        if isinstance(block.mlp, Experts):  # they are of one size: any will do
            unread |= {
                id(weight) for expert in block.mlp.experts[block.mlp.per_token :] for weight in expert.parameters()
            }
    return (parameter for parameter in decoder.parameters() if id(parameter) not in unread)


def nbytes(tensors: Iterator[Tensor]) -> int:
    """Bytes of all of them."""
    return sum(tensor.nbytes for tensor in tensors)
