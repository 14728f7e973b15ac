"""How much arithmetic a step of training is, by a decoder's configuration. Knows no clock, no device and no tensor.

A product of (m, k) and (k, n) is 2·m·k·n operations; what is no product of matrices counts nothing. Letters as in
`model/decoder.py`, and L layers, F feed-forward size, T tokens of a sequence, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from bloomery.model.config import DecoderConfig
from bloomery.ops.causal import ROWS

THERE_AND_BACK = 3
"""Products of a trained layer: its output, then the gradients of its input and of its weight, each as large."""
THROUGH_FROZEN = 2
"""Of a frozen layer: no gradient of its weight is made."""


def adapter_weights_used(config: DecoderConfig, sizes: Mapping[str, int]) -> int:
    """Numbers of an adapter that one token is multiplied with: of experts, those of as many as it takes.

    Args:
        sizes: how many each matrix of the adapter has, by its name in the decoder. Experts are alike.
    """
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    return sum(sizes.values()) - experts + experts * config.experts_per_token // config.num_experts


@dataclass(frozen=True)
class StepCost:
    """Operations of forward and backward passes.

    `model` is what the mathematics asks for, which MFU counts; `hardware` is what is computed, which HFU counts.

    Args:
        recompute: blocks are computed again on the way back (activation checkpointing).
        adapter_weights: numbers of trained adapters (LoRA) over frozen weights that one token is multiplied with, as
            `adapter_weights_used` counts them; None: all weights are trained.
        banded: attention goes in bands of queries, as `ops/causal` has it on a CPU: keys that no query of one can see
            are left out, and scores are made again on the way back.
    """

    config: DecoderConfig
    recompute: bool = False
    adapter_weights: int | None = None
    banded: bool = False

    @property
    def block_weights(self) -> int:
        """Weights that one token is multiplied with in all blocks: of experts, those that it takes, and the router."""
        config = self.config
        heads, groups, size = config.num_heads, config.num_kv_heads, config.head_dim
        attention = config.hidden_size * size * (heads + 2 * groups) + heads * size * config.hidden_size
        router = config.hidden_size * config.num_experts if config.num_experts > 1 else 0
        inward = 2 if config.gated_mlp else 1
        expert = (inward + 1) * config.hidden_size * config.ffn_size
        return config.num_layers * (attention + router + config.experts_per_token * expert)

    @property
    def head_weights(self) -> int:
        """Weights of the head. A row that an embedding looks up is no product."""
        return self.config.hidden_size * self.config.vocab_size

    def attention(self, seq_len: int) -> int:
        """Operations of one token's scores and weighted sums in all layers, forward: 4·H·D·S for S keys.

        S is the whole sequence, or the window where there is one. The half that causality hides counts, as in
        Chowdhery et al. 2022 (PaLM, appendix B) and Narayanan et al. 2021 (Megatron-LM, section 5.1).
        """
        return self._attention(min(seq_len, self.config.sliding_window or seq_len))

    def model(self, sequences: int, seq_len: int) -> int:
        """Operations that a step needs."""
        return sequences * seq_len * (self._linear() + THERE_AND_BACK * self.attention(seq_len))

    def hardware(self, sequences: int, seq_len: int) -> int:
        """Operations that a step takes: attention's masks are over whole sequences, or over bands, and blocks may be
        computed twice.

        A block's last product is not repeated, since nothing on the way back asks for its result; that of experts is.
        """
        dense = self._attention(self._pairs(seq_len))  # of a sequence: two products
        attention = THERE_AND_BACK * dense + (dense // 2 if self.banded else 0)
        again = 2 * seq_len * (self.block_weights - self._last_weights()) + dense if self.recompute else 0
        return sequences * (seq_len * self._linear() + attention + again)

    @property
    def formula(self) -> str:
        """How `model` and `hardware` are counted, in one line with this model's numbers."""
        config, window = self.config, self.config.sliding_window
        seen = "T" if window is None else f"min(T, {window})"
        weights = f"{self.block_weights:,} (blocks) + {self.head_weights:,} (head)"
        attention = f"3 × 4 × {config.num_layers} layers × {config.num_heads * config.head_dim} × {seen}"
        if self.adapter_weights is None:
            linear = f"6 × [{weights}]"
        else:
            linear = f"4 × [{weights}, frozen] + 6 × {self.adapter_weights:,} (adapter)"
        active = f", {config.experts_per_token} of {config.num_experts} experts" if config.num_experts > 1 else ""
        extra = [] if window is None or self.banded else ["attention over all of T"]
        extra += ["blocks computed again"] if self.recompute else []
        extra += ["scores made again"] if self.banded else []
        hardware = f"HFU counts {' and '.join(extra)} too" if extra else "HFU is the same, as nothing is recomputed"
        hardware += f", and not what bands of {ROWS} queries leave out" if self.banded else ""
        return f"FLOPs a token = {linear}{active} + {attention}, T tokens of a sequence, masked too; {hardware}"

    def _attention(self, keys: int) -> int:
        return 4 * self.config.num_layers * self.config.num_heads * self.config.head_dim * keys

    def _pairs(self, seq_len: int) -> int:
        """Queries and keys of a sequence that are multiplied with each other."""
        if not self.banded:
            return seq_len * seq_len
        pairs, window = 0, self.config.sliding_window or seq_len
        for end in range(seq_len, 0, -ROWS):
            begin = max(0, end - ROWS)
            pairs += (end - begin) * (end - max(0, begin - window + 1))
        return pairs

    def _linear(self) -> int:
        """Operations of one token in all linear layers, there and back."""
        weights = self.block_weights + self.head_weights
        if self.adapter_weights is None:
            return 2 * THERE_AND_BACK * weights
        return 2 * THROUGH_FROZEN * weights + 2 * THERE_AND_BACK * self.adapter_weights

    def _last_weights(self) -> int:
        config = self.config
        return config.num_layers * config.hidden_size * config.ffn_size if config.num_experts == 1 else 0
