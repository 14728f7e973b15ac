"""How much arithmetic a step of training is, by a decoder's configuration. Knows no clock, no device and no tensor.

A product of (m, k) and (k, n) is 2·m·k·n operations; what is no product of matrices counts nothing. Letters as in
`model/decoder.py`, and L layers, F feed-forward size, T tokens of a sequence, V vocabulary.
"""

from dataclasses import dataclass

from bloomery.model.config import DecoderConfig

THERE_AND_BACK = 3
"""Products of a trained layer: its output, then the gradients of its input and of its weight, each as large."""
THROUGH_FROZEN = 2
"""Of a frozen layer: no gradient of its weight is made."""


@dataclass(frozen=True)
class StepCost:
    """Operations of forward and backward passes.

    `model` is what the mathematics asks for, which MFU counts; `hardware` is what is computed, which HFU counts.

    Args:
        recompute: blocks are computed again on the way back (activation checkpointing).
        adapter_weights: numbers of trained adapters (LoRA) over frozen weights; None: all weights are trained.
    """

    config: DecoderConfig
    recompute: bool = False
    adapter_weights: int | None = None

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
        """Operations that a step takes: windows are masks over whole sequences, and blocks may be computed twice.

        A block's last product is not repeated, since nothing on the way back asks for its result; that of experts is.
        """
        dense = self._attention(seq_len)
        again = 2 * (self.block_weights - self._last_weights()) + dense if self.recompute else 0
        return sequences * seq_len * (self._linear() + THERE_AND_BACK * dense + again)

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
        extra = [] if window is None else ["attention over all of T"]
        extra += ["blocks computed again"] if self.recompute else []
        hardware = f"HFU counts {' and '.join(extra)} too" if extra else "HFU is the same, as nothing is recomputed"
        return f"FLOPs a token = {linear}{active} + {attention}, T tokens of a sequence, masked too; {hardware}"

    def _attention(self, keys: int) -> int:
        return 4 * self.config.num_layers * self.config.num_heads * self.config.head_dim * keys

    def _linear(self) -> int:
        """Operations of one token in all linear layers, there and back."""
        weights = self.block_weights + self.head_weights
        if self.adapter_weights is None:
            return 2 * THERE_AND_BACK * weights
        return 2 * THROUGH_FROZEN * weights + 2 * THERE_AND_BACK * self.adapter_weights

    def _last_weights(self) -> int:
        config = self.config
        return config.num_layers * config.hidden_size * config.ffn_size if config.num_experts == 1 else 0
