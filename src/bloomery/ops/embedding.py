"""Rows of a table: our own kernel for inference on a CPU, PyTorch's elsewhere. Knows no module."""

from torch import Tensor
from torch.nn import functional

from bloomery.ops.choice import computes_natively
from bloomery.ops.native.calls import DTYPES, address, call


def embed(places: Tensor, table: Tensor, plus: Tensor | None = None) -> Tensor:
    """Rows of a table, and other vectors added to them: (N,) int64, (rows, E), (N, E) -> (N, E)."""
    if computes_natively(table):
        return _gather(places, table, plus)
    rows = functional.embedding(places, table)
    return rows if plus is None else plus + rows


def _gather(places: Tensor, table: Tensor, plus: Tensor | None) -> Tensor:
    table, plus = table.contiguous(), None if plus is None else plus.contiguous()
    rows, width = table.shape
    out = table.new_empty(len(places), width)
    addresses = address(table), address(places), address(plus), address(out)
    call("gather", *addresses, len(places), width, rows, DTYPES[table.dtype])
    return out
