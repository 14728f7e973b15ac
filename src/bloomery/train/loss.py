"""How wrong a decoder is on whole sequences. Knows no optimizer and no file.

Letters: B sequences, T tokens of each, V vocabulary.
"""

import torch
from torch import Tensor

from bloomery.model.cache import CausalAttention
from bloomery.model.decoder import Decoder
from bloomery.train.linear_loss import linear_loss

SHAPES = 4
"""Of batches that are remembered: of micro-batches and their last, of measuring and its last."""
IGNORED = -1
"""A target that counts nothing."""


class SequenceLoss:
    """Summed cross entropy of the next token, in nats.

    Args:
        dtype: of the matrix products; weights keep their own.
        attention_dropout: part of the attention weights that are dropped while the decoder trains.
    """

    def __init__(self, decoder: Decoder, dtype: torch.dtype, attention_dropout: float = 0.0) -> None:
        self.decoder = decoder
        self.dtype = dtype
        self.attention_dropout = attention_dropout
        self._shaped: dict[tuple[int, int], tuple[Tensor, CausalAttention]] = {}

    def __call__(self, windows: Tensor, segments: Tensor | None = None) -> Tensor:
        """A scalar, the sum over all predictions that count.

        Args:
            windows: (B, T + 1) token ids; each token but the last is an input, each but the first is predicted.
            segments: (B, T + 1) the document of each token: none is predicted from another document, or sees one.
        """
        inputs, targets = windows[:, :-1], targets_of(windows, segments)
        positions, attend = self._for_shape(inputs.shape[0], inputs.shape[1])
        if segments is not None:
            attend = attend.within(segments[:, :-1])
        # Matrices in bf16 over float32 weights; what autocast knows to be delicate (norms, sums) stays in float32.
        with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            hidden = self.decoder(inputs.flatten(), positions, attend)  # (B*T, E)
            return linear_loss(hidden, self.decoder.head.weight, self.decoder.head.bias, targets.flatten())

    def _for_shape(self, sequences: int, length: int) -> tuple[Tensor, CausalAttention]:
        """Positions and attention bias, made once for each shape of a batch while that is in use."""
        key = (sequences, length)
        if key not in self._shaped:
            if len(self._shaped) == SHAPES:  # a bias is large, and sequences that grow have many lengths
                del self._shaped[next(iter(self._shaped))]
            device = self.decoder.device
            positions = torch.arange(length, device=device).repeat(sequences)  # (B*T,)
            rule = self.decoder.attention_rule
            self._shaped[key] = positions, CausalAttention(sequences, length, rule, device, self._dropout)
        return self._shaped[key]

    def _dropout(self) -> float:
        return self.attention_dropout if self.decoder.training else 0.0


def targets_of(windows: Tensor, segments: Tensor | None = None) -> Tensor:
    """(B, T) what each token but the last has to predict; `IGNORED` where that is of another document."""
    targets = windows[:, 1:]
    return targets if segments is None else targets.where(segments[:, 1:] == segments[:, :-1], IGNORED)


def count_of(windows: Tensor, segments: Tensor | None = None) -> int:
    """How many predictions count."""
    return int((targets_of(windows, segments) != IGNORED).sum()) if segments is not None else windows[:, 1:].numel()
