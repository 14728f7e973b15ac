"""Operations that are counted by formula are those that PyTorch counts while a step runs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bloomery.families import FAMILIES
from bloomery.model.config import DecoderConfig
from bloomery.model.decoder import Decoder
from bloomery.model.init import init_decoder_
from bloomery.ops import causal
from bloomery.train.lora import add_lora_, lora_parameters
from bloomery.train.loss import SequenceLoss
from bloomery.train.passes import recompute_
from bloomery.train.recipe.lora_options import LoraOptions
from bloomery.train.report.flops import StepCost, adapter_weights_used
from tiny import SHAPES, Shape

SEQUENCES, LENGTH = 3, 20


def config_of(shape: Shape) -> DecoderConfig:
    import transformers

    theirs = transformers.AutoConfig.for_model(shape.family, **shape.options).to_dict()
    return FAMILIES[shape.family].to_config(theirs)


def windows(config: DecoderConfig, length: int = LENGTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (SEQUENCES, length + 1), generator=generator)


def new_decoder(config: DecoderConfig) -> Decoder:
    decoder = Decoder(config)
    init_decoder_(decoder, 0)
    return decoder.train()


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as it is computed elsewhere than on a CPU."""

    def attend(q: Tensor, k: Tensor, v: Tensor, bands: list[causal.Band], dropout: float, seed: int) -> Tensor:
        (band,) = bands
        return causal._attend_fused(q, k, v, band, dropout)

    monkeypatch.setattr(causal, "_attend_in_bands", attend)


def counted(decoder: Decoder, length: int = LENGTH) -> int:
    """What PyTorch counts in forward and backward. Of attention it knows the plain products, not the CPU's kernel, and
    of products added to something those that give a new tensor."""
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1]}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        SequenceLoss(decoder, torch.float32)(windows(decoder.config, length)).backward()
    return counter.get_total_flops()


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_step_takes_what_pytorch_counts(shape: Shape) -> None:
    config = config_of(shape)
    assert StepCost(config).model(SEQUENCES, LENGTH) == counted(new_decoder(config))


@pytest.mark.parametrize("length", [LENGTH, causal.ROWS, 2 * causal.ROWS + 40])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["bloom-8-heads", "llama-grouped-scaled", "mixtral-2-of-3-window"])
def test_in_bands_a_step_takes_what_pytorch_counts(name: str, recompute: bool, length: int) -> None:
    config = replace(config_of(next(shape for shape in SHAPES if shape.name == name)), max_seq_len=512)
    decoder = new_decoder(config)
    if recompute:
        recompute_(decoder)
    cost = StepCost(config, recompute, banded=True)
    assert cost.hardware(SEQUENCES, length) == counted(decoder, length)
    assert cost.model(SEQUENCES, length) == StepCost(config).model(SEQUENCES, length)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_recomputed_blocks_count_as_hardware_alone(shape: Shape) -> None:
    cost = StepCost(config_of(shape), recompute=True)
    decoder = new_decoder(cost.config)
    recompute_(decoder)
    assert cost.hardware(SEQUENCES, LENGTH) == counted(decoder)
    assert cost.model(SEQUENCES, LENGTH) == StepCost(cost.config).model(SEQUENCES, LENGTH)


@pytest.mark.usefixtures("fused")
def test_of_a_window_the_model_needs_less_than_is_computed() -> None:
    whole = config_of(next(shape for shape in SHAPES if shape.name == "mixtral-2-of-3-window"))
    cost = StepCost(replace(whole, sliding_window=8))
    assert cost.hardware(SEQUENCES, LENGTH) == counted(new_decoder(cost.config))
    saved = cost.hardware(SEQUENCES, LENGTH) - cost.model(SEQUENCES, LENGTH)
    width = cost.config.num_heads * cost.config.head_dim
    assert saved == 3 * 4 * cost.config.num_layers * width * (LENGTH - 8) * SEQUENCES * LENGTH
    assert StepCost(replace(whole, sliding_window=LENGTH)).model(1, LENGTH) == cost.hardware(1, LENGTH)


@pytest.mark.usefixtures("fused")
def test_frozen_weights_get_no_gradient() -> None:
    config = config_of(SHAPES[0])
    decoder = new_decoder(config)
    decoder.requires_grad_(False)
    # As adapters in the first block do, this asks for the gradient of all that comes after the embedding.
    decoder.embed.register_forward_hook(lambda module, given, out: out.requires_grad_())
    assert StepCost(config, adapter_weights=0).model(SEQUENCES, LENGTH) == counted(decoder)


def test_an_adapter_counts_as_trained_weights() -> None:
    config = config_of(SHAPES[0])
    frozen, adapted = StepCost(config, adapter_weights=0), StepCost(config, adapter_weights=1000)
    assert adapted.model(1, LENGTH) - frozen.model(1, LENGTH) == 6 * 1000 * LENGTH


@pytest.mark.usefixtures("fused")
def test_of_adapters_of_experts_those_count_that_a_token_meets() -> None:
    config = config_of(next(shape for shape in SHAPES if shape.name == "mixtral-2-of-3-window"))
    decoder = new_decoder(config)
    options = LoraOptions(rank=4, targets=("attn.out", "mlp.gate", "mlp.up", "mlp.down"))
    add_lora_(decoder, FAMILIES["mixtral"], options, 0)
    decoder.embed.register_forward_hook(lambda module, given, out: out.requires_grad_())
    sizes = {name: parameter.numel() for name, parameter in lora_parameters(decoder).items()}
    used = adapter_weights_used(config, sizes)
    assert 0 < used < sum(sizes.values())
    assert StepCost(config, adapter_weights=used).model(SEQUENCES, LENGTH) == counted(decoder)


def test_the_formula_gives_what_is_counted() -> None:
    cost = StepCost(config_of(SHAPES[0]))
    said = cost.formula.partition(" = ")[2].partition(", T tokens")[0].replace(",", "")
    for words, symbol in {"(blocks)": "", "(head)": "", "layers": "", "×": "*", "[": "(", "]": ")"}.items():
        said = said.replace(words, symbol)
    assert eval(said, {"T": LENGTH}) == cost.model(1, LENGTH) / LENGTH
    assert "HFU is the same" in cost.formula


def test_the_formula_says_what_only_hardware_does() -> None:
    mixture = config_of(next(shape for shape in SHAPES if shape.name == "mixtral-2-of-3-window"))
    assert "2 of 3 experts" in StepCost(mixture).formula
    assert "min(T, 100)" in StepCost(mixture).formula
    assert "HFU counts attention over all of T and blocks computed again too" in StepCost(mixture, True).formula
    banded = StepCost(mixture, True, banded=True).formula
    assert "HFU counts blocks computed again and scores made again too, and not what bands of 128 queries" in banded
    assert "frozen] + 6 × 50 (adapter)" in StepCost(mixture, adapter_weights=50).formula


def test_recomputed_steps_cost_what_megatron_says_but_for_the_last_products() -> None:
    """96·B·S·L·h²·(1 + S/6h + V/16Lh): Narayanan et al. 2021, section 5.1, of steps that compute each block again."""
    config = config_of(SHAPES[0])  # ungated, F = 4h, as they assume
    layers, width, vocabulary, length, batch = config.num_layers, config.hidden_size, config.vocab_size, 64, 5
    share = 1 + length / (6 * width) + vocabulary / (16 * layers * width)
    theirs = 96 * batch * length * layers * width**2 * share
    not_repeated = batch * length * layers * 2 * width * 4 * width
    assert StepCost(config, recompute=True).hardware(batch, length) == pytest.approx(theirs - not_repeated, rel=1e-12)
