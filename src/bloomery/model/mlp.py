"""The feed-forward half of a block: one, or several experts of which each token takes a few."""

from functools import partial

import torch
from torch import Tensor, nn

from bloomery.model.config import DecoderConfig
from bloomery.model.layers import Linear
from bloomery.ops.activation import activate


class Mlp(nn.Module):
    """up, activation, down; or, gated, the activation of gate times up (Shazeer 2020, "GLU Variants", equation 6)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        inward = partial(Linear, config.hidden_size, config.ffn_size, bias=config.mlp_bias)
        self.gate = inward() if config.gated_mlp else None
        self.up = inward()
        self.down = Linear(config.ffn_size, config.hidden_size, bias=config.mlp_bias)
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:  # (N, E) -> (N, E)
        if self.gate is None:
            return self.down(activate(self.up(x), self.activation))
        return self.down(activate(self.gate(x), self.activation, times=self.up(x)))


class Experts(nn.Module):
    """Each token goes through the best few of them, weighted by a router (Jiang et al. 2024, section 2.1)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.per_token = config.experts_per_token
        self.router = Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(Mlp(config) for _ in range(config.num_experts))

    def forward(self, x: Tensor) -> Tensor:  # (N, E) -> (N, E)
        odds = self.router(x).float().softmax(-1)
        weights, chosen = odds.topk(self.per_token)  # (N, per_token) each
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            tokens, place = torch.where(chosen == index)
            if len(tokens):
                out.index_add_(0, tokens, expert(x[tokens]) * weights[tokens, place, None])
        return out
