"""An adapter that we train is the one that peft would have trained: the same numbers on the way, and at the end."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from adapted import fresh, quiet
from bloomery.checkpoint.adapter import read_adapter
from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.errors import UsageError
from bloomery.model.cache import CausalAttention
from bloomery.model.decoder import Decoder
from bloomery.train.lora import LowRankLinear, add_lora_, lora_parameters
from bloomery.train.recipe.lora_options import LoraOptions
from drive import load, uncached_logits
from low_rank import RANK_4, adapted, family_of, tensors_of, write
from tiny import Tiny

TRAINED = (
    "bloom-6-heads",
    "gpt2-tanh",
    "llama-grouped-scaled",
    "falcon-40b-like",
    "phi-grouped",
    "mixtral-2-of-3-window",
)
"""Fused and separate q, k and v, matrices of either orientation, shared keys, tied and untied heads, experts."""
BATCH, LENGTH = 3, 24
Get = Callable[[str], Tiny]


def windows(tiny: Tiny, step: int) -> Tensor:
    """(B, T + 1)"""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(tiny.model.config.vocab_size, (BATCH, LENGTH + 1), generator=generator)


def loss_of(decoder: Decoder, ids: Tensor) -> Tensor:
    """Mean cross entropy of the next token, written with nothing of the trainer's."""
    inputs, targets = ids[:, :-1], ids[:, 1:]
    sequences, length = inputs.shape
    attend = CausalAttention(sequences, length, decoder.attention_rule, decoder.device)
    hidden = decoder(inputs.flatten(), torch.arange(length).repeat(sequences), attend)
    return cross_entropy(decoder.head(hidden), targets.flatten())


def gradients(decoder: Decoder) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in decoder.named_parameters() if parameter.grad is not None}
    decoder.zero_grad(set_to_none=True)
    return found


def frozen(decoder: Decoder) -> dict[str, Tensor]:
    return {name: p for name, p in decoder.named_parameters() if name not in lora_parameters(decoder)}


def trainable(tiny: Tiny, folder: Path) -> PeftModel:
    """peft's model with a folder's adapter, to be trained further. Nothing but the adapter drops anything."""
    base = fresh(tiny)
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with quiet():
        return PeftModel.from_pretrained(base, folder, is_trainable=True)


def train(loss: Callable[[Tensor], Tensor], module: nn.Module, batches: list[Tensor]) -> Tensor:
    """Loss and gradient norm of each step of torch's AdamW, (steps, 2)."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # With an eps as small as rounding errors, AdamW would make whole steps of them.
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1)
    seen = []
    for step, ids in enumerate(batches):
        torch.manual_seed(step)
        optimizer.zero_grad()
        value = loss(ids)
        value.backward()
        seen.append([value.item(), torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()])
        optimizer.step()
    return torch.tensor(seen)


def train_both(tiny: Tiny, options: LoraOptions, folder: Path) -> tuple[Decoder, PeftModel]:
    """Three steps of ours and three of peft's, from the same adapter; losses and gradient norms agree."""
    ours = adapted(tiny, options).train()
    theirs = trainable(tiny, write(ours, tiny, folder / "before", options)).train()
    batches = [windows(tiny, step) for step in range(3)]

    def loss_of_theirs(ids: Tensor) -> Tensor:
        return cross_entropy(theirs(input_ids=ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())

    seen, expected = train(partial(loss_of, ours), ours, batches), train(loss_of_theirs, theirs, batches)
    assert ((seen - expected).abs() <= 1e-5 * expected).all(), (seen, expected)
    return ours, theirs


def assert_same_adapter(folder: Path, theirs: PeftModel) -> None:
    """A written folder holds what peft has learned."""
    written, expected = load_file(folder / "adapter_model.safetensors"), tensors_of(theirs)
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (written[name] - tensor).abs().max() <= 1e-5, name


@pytest.mark.parametrize("name", TRAINED)
def test_three_steps_equal_peft(tiny: Get, tmp_path: Path, name: str) -> None:
    """Losses, gradient norms, A and B; the model below is the same to the last bit."""
    base = tiny(name)
    before = load(base.path).state_dict()
    # transformers joins experts, and peft trains what is 0 between their matrices too: another adapter.
    options = LoraOptions(rank=4, targets=("attn.qkv", "attn.out")) if name.startswith("mixtral") else RANK_4
    ours, theirs = train_both(base, options, tmp_path)
    assert_same_adapter(write(ours, base, tmp_path / "after", options), theirs)
    assert all(torch.equal(before[name], weight) for name, weight in frozen(ours).items())


@pytest.mark.parametrize("name", ["bloom-6-heads", "gpt2-tanh", "llama-grouped-scaled", "falcon-40b-like"])
def test_what_is_dropped_equals_peft(tiny: Get, tmp_path: Path, name: str) -> None:
    """The same generator gives the same masks, one for each published matrix; nothing is dropped in evaluation."""
    options = LoraOptions(rank=4, dropout=0.3)
    base = tiny(name)
    ours, theirs = train_both(base, options, tmp_path)
    assert_same_adapter(write(ours, base, tmp_path / "after", options), theirs)
    ids = windows(base, 9)
    assert loss_of(ours, ids) != loss_of(ours, ids)
    ours.eval()
    assert loss_of(ours, ids) == loss_of(ours, ids)


@pytest.mark.parametrize("name", TRAINED)
def test_new_adapter_changes_nothing(tiny: Get, name: str) -> None:
    decoder = adapted(tiny(name), moved=False)
    ids = [tiny(name).prompt(30)]
    assert torch.equal(uncached_logits(decoder, ids), uncached_logits(load(tiny(name).path), ids))


def test_first_numbers_depend_on_seed_and_name_alone(tiny: Get) -> None:
    base = tiny("llama-multi-head")
    every, some = load(base.path), load(base.path)
    add_lora_(every, family_of(base), LoraOptions(rank=8), seed=5)
    add_lora_(some, family_of(base), LoraOptions(rank=8, targets=("mlp.up",)), seed=5)
    name = "blocks.1.mlp.up.lora_a"
    assert torch.equal(lora_parameters(every)[name], lora_parameters(some)[name])
    assert not torch.equal(lora_parameters(every)[name], lora_parameters(every)["blocks.0.mlp.up.lora_a"])
    other = load(base.path)
    add_lora_(other, family_of(base), LoraOptions(rank=8), seed=6)
    assert not torch.equal(lora_parameters(every)[name], lora_parameters(other)[name])
    # nn.Linear's own beginning, and peft's: uniform within 1 / sqrt(in), so that a third of its square is the variance.
    matrix = lora_parameters(every)[name]
    assert matrix.abs().max() <= 64**-0.5
    assert matrix.var().item() == pytest.approx(1 / (3 * 64), rel=0.2)


@pytest.mark.parametrize("name", TRAINED)
def test_only_the_adapter_wants_gradients(tiny: Get, name: str) -> None:
    decoder = adapted(tiny(name)).train()
    loss_of(decoder, windows(tiny(name), 0)).backward()
    found = gradients(decoder)
    assert found.keys() == lora_parameters(decoder).keys()
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    wanting = {name for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    assert wanting == found.keys()


@pytest.mark.parametrize("name", ["gpt2-tanh", "llama-grouped-scaled"])
def test_gradients_are_slopes_of_the_loss(tiny: Get, name: str) -> None:
    """Against differences in float64, in a random direction of each matrix: of the first block too, below all else."""
    decoder = adapted(tiny(name)).double()
    ids = windows(tiny(name), 0)
    loss_of(decoder, ids).backward()
    generator = torch.Generator().manual_seed(3)
    for (key, parameter), gradient in zip(lora_parameters(decoder).items(), gradients(decoder).values(), strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        with torch.no_grad():
            start = parameter.clone()
            for side in (1, -1):
                parameter.copy_(start + side * 1e-5 * direction)
                values.append(loss_of(decoder, ids).item())
            parameter.copy_(start)
        slope = (values[0] - values[1]) / 2e-5
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-5, abs=1e-8), key


@pytest.mark.parametrize("name", ["mixtral-2-of-4", "bloom-6-heads"])
def test_gradients_are_those_of_merged_weights(tiny: Get, tmp_path: Path, name: str) -> None:
    """Of experts too: dA = s B' dW and dB = s dW A' for W + s B A, where dW is what training the whole W would use."""
    base, ids = tiny(name), windows(tiny(name), 0)
    options = LoraOptions(rank=4, alpha=6, targets=("attn.out", "mlp.up", "mlp.down"))
    decoder = adapted(base, options)
    loss_of(decoder, ids).backward()
    folder = read_folder(base.path)
    adapter = read_adapter(write(decoder, base, tmp_path / "adapter", options), folder)
    merged = load_decoder(folder, torch.float32, adapter=adapter).requires_grad_(True)
    loss_of(merged, ids).backward()
    whole, found, parameters = gradients(merged), gradients(decoder), lora_parameters(decoder)
    for key in (name.removesuffix(".lora_a") for name in found if name.endswith(".lora_a")):
        slope = 1.5 * whole[f"{key}.weight"]
        a, b = parameters[f"{key}.lora_a"], parameters[f"{key}.lora_b"]
        for part, expected in (("lora_a", b.T @ slope), ("lora_b", slope @ a.T)):
            allowed = 1e-5 * expected.abs().max().clamp(min=1)
            assert (found[f"{key}.{part}"] - expected).abs().max() <= allowed, f"{key}.{part}"


def test_recomputed_blocks_give_the_same_gradients(tiny: Get) -> None:
    """Activation checkpointing, where no input of a block below the first adapter wants a gradient; masks too."""
    base = tiny("llama-grouped-scaled")
    decoder = adapted(base, LoraOptions(rank=4, dropout=0.3)).train()

    def run() -> dict[str, Tensor]:
        torch.manual_seed(7)
        loss_of(decoder, windows(base, 0)).backward()
        return gradients(decoder)

    kept = run()
    for block in decoder.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    again = run()
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.parametrize("name", ["bloom-6-heads", "gpt2-tanh", "llama-grouped-scaled", "mixtral-2-of-4"])
def test_bfloat16_products_give_nearly_the_same_gradients(tiny: Get, name: str) -> None:
    """Under autocast over fp32 weights, and over weights that are kept in bf16; A and B stay in fp32."""
    base = tiny(name)
    exact, ids = adapted(base), windows(base, 0)
    loss = loss_of(exact, ids)
    loss.backward()
    expected = gradients(exact)
    half = load_decoder(read_folder(base.path), torch.bfloat16)
    add_lora_(half, family_of(base), RANK_4, seed=5)
    with torch.no_grad():
        for key, parameter in lora_parameters(half).items():
            parameter.copy_(lora_parameters(exact)[key])
    for decoder in (exact, half):
        before = {key: weight.clone() for key, weight in frozen(decoder).items()}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = loss_of(decoder, ids)
        rounded.backward()
        assert rounded.item() == pytest.approx(loss.item(), rel=0.03)
        for key, gradient in gradients(decoder).items():
            assert gradient.dtype == torch.float32
            likeness = nn.functional.cosine_similarity(gradient.flatten(), expected[key].flatten(), dim=0)
            assert likeness > 0.9, key
        assert all(torch.equal(before[key], weight) for key, weight in frozen(decoder).items())


def test_bfloat16_weights_need_no_autocast(tiny: Get) -> None:
    """As peft has it: the adapter computes in fp32, and the sum is rounded to what the layer gives."""
    base = tiny("gpt2-tanh")
    decoder = load_decoder(read_folder(base.path), torch.bfloat16)
    layer = decoder.blocks[0].mlp.up
    x = torch.randn(5, layer.in_features, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    plain = layer(x)
    add_lora_(decoder, family_of(base), RANK_4, seed=5)
    layer = decoder.blocks[0].mlp.up
    nn.init.constant_(layer.lora_b, 0.5)
    added = 1.5 * (x.float() @ layer.lora_a.T @ layer.lora_b.T)
    assert torch.equal(layer(x), (plain + added).to(torch.bfloat16))


def test_matrix_that_the_model_has_not_is_refused_before_anything_changes(tiny: Get) -> None:
    base = tiny("gpt2-tanh")
    decoder = load(base.path)
    with pytest.raises(UsageError, match=r"'mlp.gate', which this gpt2 has not: it has attn.qkv, attn.out, mlp.up"):
        add_lora_(decoder, family_of(base), LoraOptions(rank=4, targets=("attn.qkv", "mlp.gate")), seed=0)
    assert not any(isinstance(module, LowRankLinear) for module in decoder.modules())


def test_second_adapter_is_refused(tiny: Get) -> None:
    base = tiny("gpt2-tanh")
    decoder = adapted(base)
    with pytest.raises(ValueError, match="already"):
        add_lora_(decoder, family_of(base), RANK_4, seed=0)
    with pytest.raises(UsageError, match=r"lora\.rank is 0"):
        add_lora_(load(base.path), family_of(base), LoraOptions(), seed=0)
