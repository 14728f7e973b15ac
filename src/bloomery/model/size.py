"""How many bytes a decoder is, and how many of them a step reads. Arithmetic only."""

from collections.abc import Iterator

from torch import Tensor

from bloomery.model.decoder import Decoder


def weights_read(decoder: Decoder) -> Iterator[Tensor]:
    """The weights that every step reads from end to end: all but tables of which it reads single rows.

    A tied embedding counts: it is the head.
    """
    tables = {id(table.weight) for table in (decoder.embed.tokens, decoder.embed.positions) if table is not None}
    for parameter in decoder.parameters():  # a tied pair is one parameter
        if id(parameter) not in tables or parameter is decoder.head.weight:
            yield parameter


def nbytes(tensors: Iterator[Tensor]) -> int:
    """Bytes of all of them."""
    return sum(tensor.nbytes for tensor in tensors)
