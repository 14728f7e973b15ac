"""The layers of PyTorch that a decoder is made of, computed by `ops`: on a CPU, for inference, by our own kernels.

Knows neither what they are part of nor where their weights come from.
"""

from torch import Tensor, nn

from bloomery.ops.linear import linear
from bloomery.ops.norm import layer_norm, rms_norm


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:  # (..., K) -> (..., N)
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:  # (..., E) -> (..., E)
        return layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(nn.RMSNorm):
    eps: float

    def forward(self, x: Tensor) -> Tensor:  # (..., E) -> (..., E)
        return rms_norm(x, self.weight, self.eps)
