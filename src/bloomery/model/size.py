"""How many bytes a decoder is, and how many of them a step reads. Arithmetic only."""

from collections.abc import Iterator

from torch import Tensor

from bloomery.model.decoder import Decoder
from bloomery.model.mlp import Experts


def weights_read(decoder: Decoder) -> Iterator[Tensor]:
    """The weights that a step of one token reads from end to end: all but tables of which it reads single rows, and
    all but as many experts as a token takes.

    A tied embedding counts: it is the head.
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
