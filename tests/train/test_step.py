"""A step is what transformers and torch's AdamW do with the same weights; a step that is not finite changes nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BloomForCausalLM, GPT2LMHeadModel

from bloomery.checkpoint.export import export_decoder
from bloomery.errors import BloomeryError
from bloomery.families import FAMILIES
from bloomery.train.config import ModelShape, Optim
from bloomery.train.loss import SequenceLoss
from bloomery.train.setup import build_decoder
from bloomery.train.step import PATIENCE, TrainStep

STEPS = 4
# A norm below that of every step's gradients, so that each is clipped; a decay strong enough to be seen.
OPTIONS = Optim(lr=1e-3, warmup_steps=2, weight_decay=0.3, clip=0.5, beta2=0.95)
THEIR_RATES = [5e-4, 1e-3, 5.5e-4, 1e-4]


def make(family: str) -> SequenceLoss:
    shape = ModelShape(family=family, vocab_size=300, hidden_size=64, num_layers=2, num_heads=4, seq_len=25)
    decoder = build_decoder(shape, FAMILIES[family], seed=3)
    with torch.no_grad():  # with first weights of 0 and 1 some mistakes would not show
        for i, parameter in enumerate(decoder.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return SequenceLoss(decoder, torch.float32)


def windows(step: int) -> Tensor:
    """(B, T + 1) = (3, 25)."""
    return torch.randint(4, 300, (3, 25), generator=torch.Generator().manual_seed(step))


def train_theirs(model: torch.nn.Module) -> list[tuple[float, float]]:
    """The same steps written with nothing of ours: loss and gradient norm of each."""
    spared = [p for name, p in model.named_parameters() if "bias" in name or "norm" in name or "ln_" in name]
    decayed = [p for p in model.parameters() if all(p is not other for other in spared)]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    seen = []
    for step, lr in enumerate(THEIR_RATES):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        ids = windows(step)
        loss = model(ids, labels=ids).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        seen.append((loss.item(), norm.item()))
    return seen


@pytest.mark.parametrize(("family", "theirs"), [("bloom", BloomForCausalLM), ("gpt2", GPT2LMHeadModel)])
def test_four_steps_equal_those_of_transformers_and_torch(family: str, theirs: type, tmp_path: Path) -> None:
    ours = make(family)
    export_decoder(ours.decoder, FAMILIES[family], tmp_path / "before")
    model = theirs.from_pretrained(tmp_path / "before", dtype=torch.float32).eval()  # no dropout
    take_step = TrainStep(ours, OPTIONS, STEPS)
    results = [take_step(step, windows(step)) for step in range(STEPS)]
    for result, (loss, norm), lr in zip(results, train_theirs(model), THEIR_RATES, strict=True):
        assert norm > 0.5
        assert result.loss == pytest.approx(loss, rel=1e-5)
        assert result.grad_norm == pytest.approx(norm, rel=1e-5)
        assert result.lr == pytest.approx(lr)
    export_decoder(ours.decoder, FAMILIES[family], tmp_path / "after")
    after = theirs.from_pretrained(tmp_path / "after", dtype=torch.float32)
    for (name, expected), (_, found) in zip(model.named_parameters(), after.named_parameters(), strict=True):
        if "query_key_value.bias" in name or "c_attn.bias" in name:
            # The softmax does not feel a key's bias: its gradient is rounding noise, which Adam scales up.
            continue
        # AdamW moves a weight by up to lr a step: a hundredth of that is far below any real difference.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_bf16_compute_stays_near_fp32_and_keeps_fp32_weights() -> None:
    exact, rounded = make("bloom"), make("bloom")
    rounded.dtype = torch.bfloat16
    steps = TrainStep(exact, OPTIONS, STEPS), TrainStep(rounded, OPTIONS, STEPS)
    for step in range(STEPS):
        one, other = (take(step, windows(step)) for take in steps)
        assert other.loss == pytest.approx(one.loss, rel=5e-3)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=2e-2)
        assert other.loss != one.loss
    assert {p.dtype for p in rounded.decoder.parameters()} == {torch.float32}


class Spoiled(SequenceLoss):
    """A loss that is infinite in the steps named."""

    bad: tuple[int, ...] = ()
    calls = 0

    def __call__(self, windows: Tensor) -> Tensor:
        self.calls += 1
        return super().__call__(windows) * (float("inf") if self.calls - 1 in self.bad else 1)


def test_an_update_that_is_not_finite_is_dropped_and_counted() -> None:
    loss = Spoiled(make("bloom").decoder, torch.float32)
    loss.bad = (1,)
    take_step = TrainStep(loss, OPTIONS, 10)
    take_step(0, windows(0))
    before = [p.clone() for p in loss.decoder.parameters()]
    take_step(1, windows(1))
    assert take_step.dropped == 1
    assert all(torch.equal(p, q) for p, q in zip(loss.decoder.parameters(), before, strict=True))
    take_step(2, windows(2))
    assert not torch.equal(loss.decoder.embed.tokens.weight, before[0])
    assert all(torch.isfinite(p).all() for p in loss.decoder.parameters())


def test_several_dropped_updates_in_a_row_stop_the_run_and_name_the_step() -> None:
    loss = Spoiled(make("bloom").decoder, torch.float32)
    loss.bad = (1, *range(3, 3 + PATIENCE))
    take_step = TrainStep(loss, OPTIONS, 50)
    last = 3 + PATIENCE - 1
    for step in range(last):
        take_step(step, windows(step))
    with pytest.raises(BloomeryError, match=rf"step {last}: .*not finite: lower optim\.lr"):
        take_step(last, windows(last))
    assert take_step.dropped == PATIENCE + 1
