"""A packed layer computes what a plain one does with the numbers that its bytes stand for; only such layers change."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from bloomery.errors import CheckpointError
from bloomery.model.config import DecoderConfig
from bloomery.model.decoder import Decoder
from bloomery.quant.linear import QuantizedLinear, quantized
from bloomery.quant.pack import unpack
from bloomery.quant.scheme import SCHEMES, Scheme
from bloomery.quant.swap import swap_linears_, weights
from stores import config_of

schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


@schemes
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_is_a_plain_one_with_rounded_weights(scheme: Scheme, bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(100, 43, bias=bias, dtype=dtype)
    packed = quantized(plain, scheme)
    x = torch.randn(2, 7, 100).to(dtype)
    exact = functional.linear(
        x.double(),
        unpack(packed.weight, scheme, 43, 100).double(),
        plain.bias.double() if bias else None,
    )
    out = packed(x)
    assert out.dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(out.double(), exact, rtol=1e-6, atol=1e-6)
    else:  # rounded once, from fp32
        torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-6)
    assert packed.bias is None or torch.equal(packed.bias, plain.bias)
    assert not any(parameter.requires_grad for parameter in packed.parameters())


CONFIGS = {
    "head of its own": config_of(2),
    "tied": replace(config_of(2), tied_head=True),
    "tied, with a bias": replace(config_of(1), tied_head=True, head_bias=True),
    "experts": replace(config_of(2), num_experts=3, experts_per_token=2),
}


def random_decoder(config: DecoderConfig) -> Decoder:
    decoder = Decoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(generator=generator)
    return decoder


configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@schemes
@configs
def test_linear_layers_change_and_nothing_else(config: DecoderConfig, scheme: Scheme) -> None:
    decoder, plain = random_decoder(config), Decoder(config)
    plain.load_state_dict(decoder.state_dict())
    swap_linears_(decoder, scheme)
    left = [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    assert left == [f"blocks.{layer}.mlp.router" for layer in range(2) if config.num_experts > 1]
    known = weights(config, scheme)
    assert list(known) == [name for name, _ in decoder.named_parameters()]
    theirs = {name: given.detach() for name, given in plain.named_parameters(remove_duplicate=False)}
    for name, parameter in decoder.named_parameters():
        weight, given = known[name], theirs[name]
        assert tuple(parameter.shape) == weight.kept(None)
        assert weight.shape == tuple(given.shape)
        if weight.scheme is None:
            assert torch.equal(parameter, given), name
        else:
            near = unpack(parameter, scheme, *weight.shape)
            assert 0 < float((near - given).norm() / given.norm()) < 0.2, name
        assert torch.equal(theirs[weight.plain], given), name
    packed = {name for name, weight in known.items() if weight.scheme is not None}
    assert "head.weight" in packed
    assert "embed.tokens.weight" not in packed
    assert not any("norm" in name or "router" in name for name in packed)


@schemes
@configs
def test_on_meta_the_same_layers_are_empty(config: DecoderConfig, scheme: Scheme) -> None:
    decoder = random_decoder(config)
    swap_linears_(decoder, scheme)
    with torch.device("meta"):
        empty = Decoder(config)
        swap_linears_(empty, scheme)
    ours, theirs = dict(empty.named_parameters()), dict(decoder.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert parameter.is_meta
        assert (parameter.dtype, parameter.shape) == (theirs[name].dtype, theirs[name].shape), name


def test_a_weight_that_is_no_number_is_named() -> None:
    decoder = random_decoder(config_of(2))
    with torch.no_grad():
        decoder.blocks[1].mlp.up.weight[3, 4] = torch.nan
    with pytest.raises(CheckpointError, match=r"tensor 'blocks\.1\.mlp\.up\.weight': 1 numbers are NaN"):
        swap_linears_(decoder, SCHEMES["int8"])


def test_a_layer_says_what_it_is() -> None:
    layer = quantized(nn.Linear(100, 43), SCHEMES["int4"])
    assert isinstance(layer, QuantizedLinear)
    assert "in_features=100, out_features=43, bias=True, scheme=int4" in str(layer)
