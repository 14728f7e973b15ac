"""Angles of rotary positions are those of transformers, for published configurations and up to their last position."""

import pytest
import torch
from transformers import AutoConfig
from transformers.models.falcon.modeling_falcon import FalconRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi.modeling_phi import PhiRotaryEmbedding

from bloomery.families import FAMILIES
from bloomery.model.decoder import Decoder, Rotary
from bloomery.ops.rotary import rotate

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 1, "vocab_size": 9}
SIZES = LLAMA | {"intermediate_size": 1, "max_position_embeddings": 131072}
MODELS = {
    "llama-2": (LlamaRotaryEmbedding, "llama", {"rope_theta": 10000.0}),
    "llama-2-twice-as-long": (LlamaRotaryEmbedding, "llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama-3": (LlamaRotaryEmbedding, "llama", {"rope_theta": 500000.0}),
    "llama-3.1": (
        LlamaRotaryEmbedding,
        "llama",
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}},
    ),
    "phi-2": (PhiRotaryEmbedding, "phi", {"hidden_size": 2560, "partial_rotary_factor": 0.4}),
    "falcon-40b": (FalconRotaryEmbedding, "falcon", {"hidden_size": 8192, "num_attention_heads": 128}),
}


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_angles_equal_transformers(name: str, inference: bool) -> None:
    kind, family, more = MODELS[name]
    raw = SIZES | more
    config = FAMILIES[family].to_config(raw)
    assert config.rotary is not None
    ours = Rotary(config.rotary)
    theirs = kind(AutoConfig.for_model(family, **raw))
    torch.testing.assert_close(ours.frequencies, theirs.inv_freq, rtol=2**-22, atol=0)
    positions = torch.cat((torch.arange(3000), torch.arange(131000, 131072)))
    cos, sin = theirs(torch.zeros(1), positions[None])
    # As far apart as the frequencies' last bits are, times the position.
    with torch.inference_mode(inference):  # by our kernel, and by PyTorch's
        angles = ours(positions, torch.zeros(1))
    for mine, other in zip(angles, (cos, sin), strict=True):
        difference = (mine - other[0, :, : mine.shape[-1]]).abs()
        assert (difference <= 2**-22 * positions[:, None] * ours.frequencies + 1e-6).all()


def test_turning_keeps_scores_dependent_on_distance_alone() -> None:
    """What rotary positions are for (Su et al. 2021, equation 11), in float64."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 16, generator=generator, dtype=torch.float64)
    frequencies = torch.tensor([1.0, 0.3, 0.01], dtype=torch.float64)  # 6 of 16 dimensions

    def turned(x: torch.Tensor, place: int) -> torch.Tensor:
        angles = place * frequencies[None]
        return rotate(x, angles.cos(), angles.sin())

    scores = [(turned(query, place + 7) * turned(key, place)).sum() for place in (0, 1, 50, 1000)]
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(4), rtol=1e-12, atol=1e-12)
    assert torch.equal(turned(query, 5)[..., 6:], query.flatten(1, 2)[..., 6:])
    assert not torch.allclose((turned(query, 8) * turned(key, 0)).sum(), scores[0])


def test_frequencies_stay_in_fp32_when_the_model_does_not() -> None:
    raw = SIZES | {"hidden_size": 64, "num_attention_heads": 2, "rope_theta": 500000.0}
    decoder = Decoder(FAMILIES["llama"].to_config(raw))
    assert decoder.rotary is not None
    before = decoder.rotary.frequencies.clone()
    assert torch.equal(decoder.bfloat16().float().rotary.frequencies, before)
    with torch.device("meta"):
        built = Decoder(decoder.config)
    assert torch.equal(built.rotary.frequencies, before)  # follows from the configuration: no file brings it
