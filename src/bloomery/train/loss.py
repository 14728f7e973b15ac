"""How wrong a decoder is on whole sequences. Knows no optimizer and no file.

Letters: B sequences, T tokens of each, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bloomery.model.cache import CausalAttention
from bloomery.model.decoder import Decoder


class SequenceLoss:
    """Summed cross entropy of the next token, in nats."""

    def __init__(self, decoder: Decoder, dtype: torch.dtype) -> None:
        self.decoder = decoder
        self.dtype = dtype
        self._shaped: dict[tuple[int, int], tuple[Tensor, CausalAttention]] = {}

    def __call__(self, windows: Tensor) -> Tensor:
        """A scalar, the sum over B * T predictions.

        Args:
            windows: (B, T + 1) token ids; each token but the last is an input, each but the first is predicted.
        """
        inputs, targets = windows[:, :-1], windows[:, 1:]
        positions, attend = self._for_shape(inputs.shape[0], inputs.shape[1])
        # Matrices in bf16 over float32 weights; what autocast knows to be delicate (norms, sums) stays in float32.
        with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            logits = self.decoder.logits(self.decoder(inputs.flatten(), positions, attend))  # (B*T, V)
        return cross_entropy(logits, targets.flatten(), reduction="sum")

    def _for_shape(self, sequences: int, length: int) -> tuple[Tensor, CausalAttention]:
        """Positions and attention bias, made once for each shape of a batch."""
        key = (sequences, length)
        if key not in self._shaped:
            device = self.decoder.device
            positions = torch.arange(length, device=device).repeat(sequences)  # (B*T,)
            self._shaped[key] = positions, CausalAttention(sequences, length, self.decoder.attention_rule, device)
        return self._shaped[key]
