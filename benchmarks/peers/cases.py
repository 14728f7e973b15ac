"""The models that are compared, as their config.json says them, and the batches. Knows no peer."""

from typing import Any, NamedTuple


def bloom(vocab_size: int, width: int, layers: int, heads: int, length: int) -> dict[str, Any]:
    """config.json of a BLOOM."""
    return {
        "model_type": "bloom",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "n_layer": layers,
        "n_head": heads,
        "seq_length": length,
        "layer_norm_epsilon": 1e-5,
    }


def llama(vocab_size: int, width: int, ffn: int, layers: int, heads: int, groups: int, length: int) -> dict[str, Any]:
    """config.json of a Llama."""
    return {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
    }


class Case(NamedTuple):
    """A model as its config.json says it, and a batch of B sequences of T tokens."""

    config: dict[str, Any]
    sequences: int
    seq_len: int


CASES = {
    "bloom": Case(bloom(32_000, 512, 6, 8, 256), 8, 256),
    "llama": Case(llama(32_000, 512, 1408, 6, 8, 2, 256), 8, 256),
    "vocabulary": Case(bloom(250_880, 128, 2, 4, 256), 4, 256),
}
TINY = {
    "bloom": Case(bloom(512, 64, 2, 4, 32), 2, 32),
    "llama": Case(llama(512, 64, 160, 2, 4, 2, 32), 2, 32),
    "vocabulary": Case(bloom(2048, 64, 2, 4, 32), 2, 32),
}
"""For a test: their speed says nothing."""
