"""Fifty steps are what transformers and torch's AdamW do with the same weights and data, and six seeded bugs are not.

AdamW hides the scale of gradients, so the loss alone would be blind: their norm is compared as well.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from bloomery.checkpoint.export import export_decoder
from bloomery.families import FAMILIES
from bloomery.train import loss as losses
from bloomery.train import optim, step
from bloomery.train.loss import SequenceLoss
from bloomery.train.pace import Pace, Reached
from bloomery.train.recipe.pace_options import Schedule
from training import OPTIONS, make_loss, make_step, recipe, windows

STEPS, MICRO = 50, 3
"""Micro-batches of 3 and 1 sequences."""
SPARED = ("bias", "norm", "ln_")
"""Their names of what is not decayed."""
Curve = list[tuple[float, float]]
"""Loss and gradient norm of each step."""


def rates() -> list[float]:
    """Of a schedule with every phase, by transformers' own words: 10 steps up, then a cosine to nothing."""
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=OPTIONS.lr)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=10, num_training_steps=STEPS)
    found = []
    for _ in range(STEPS):
        optimizer.step()
        schedule.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


def train_theirs(model: nn.Module, steps: int = STEPS) -> Curve:
    """Nothing of ours: one batch, their loss, torch's optimizer and clipping."""
    spared = [p for name, p in model.named_parameters() if any(word in name for word in SPARED)]
    decayed = [p for p in model.parameters() if all(p is not other for other in spared)]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    seen = []
    for number, lr in zip(range(steps), rates(), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        ids = windows(number)
        loss = model(ids, labels=ids).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), OPTIONS.clip)
        optimizer.step()
        seen.append((loss.item(), norm.item()))
    return seen


def train_ours(loss: SequenceLoss, tmp_path: Path, steps: int = STEPS) -> Curve:
    """The same by our step and our schedule, in micro-batches."""
    config = recipe(tmp_path, steps=STEPS, optim=OPTIONS, schedule=Schedule(warmup=10, min_lr_ratio=0.0))
    pace, take = Pace(config, 24), make_step(loss, micro=MICRO)
    found = []
    for number in range(steps):
        result = take(number, pace.learning_rate(Reached(number + 1)), windows(number))
        found.append((result.loss, result.grad_norm))
    return found


def worst(ours: Curve, theirs: Curve) -> tuple[float, float]:
    """Largest difference of a loss, and relative one of a gradient norm."""
    pairs = list(zip(ours, theirs, strict=True))
    return max(abs(a[0] - b[0]) for a, b in pairs), max(abs(a[1] / b[1] - 1) for a, b in pairs)


def theirs_of(loss: SequenceLoss, family: str, folder: Path) -> nn.Module:
    export_decoder(loss.decoder, FAMILIES[family], folder)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()  # no dropout
    return model


@pytest.mark.parametrize("family", ["bloom", "gpt2", "llama"])
def test_fifty_steps_equal_those_of_transformers_and_torch(family: str, tmp_path: Path) -> None:
    loss = make_loss(family)
    theirs = train_theirs(theirs_of(loss, family, tmp_path / "model"))
    assert min(norm for _, norm in theirs) > OPTIONS.clip
    d_loss, d_norm = worst(train_ours(loss, tmp_path), theirs)
    assert d_loss < 1e-5
    assert d_norm < 1e-5


def plain_loop(loss: SequenceLoss) -> Curve:
    """The same decoder, the whole batch at once, all logits at once, gradients of the mean."""
    decoder, named = loss.decoder, dict(loss.decoder.named_parameters())
    groups = [
        {"params": [p for p in named.values() if p.ndim > 1], "weight_decay": OPTIONS.weight_decay},
        {"params": [p for p in named.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    seen = []
    for number, lr in enumerate(rates()):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        ids = windows(number)
        positions, attend = loss._for_shape(*ids[:, 1:].shape)
        logits = decoder.head(decoder(ids[:, :-1].flatten(), positions, attend))
        found = cross_entropy(logits, ids[:, 1:].flatten())
        found.backward()
        norm = nn.utils.clip_grad_norm_(decoder.parameters(), OPTIONS.clip)
        optimizer.step()
        seen.append((found.item(), norm.item()))
    return seen


def exact(family: str) -> SequenceLoss:
    loss = make_loss(family)
    loss.decoder.double()
    loss.dtype = torch.float64
    return loss


@pytest.mark.parametrize("family", ["bloom", "gpt2", "llama"])
def test_in_float64_micro_batches_and_chunks_are_the_plain_loop(family: str, tmp_path: Path) -> None:
    d_loss, d_norm = worst(train_ours(exact(family), tmp_path), plain_loop(exact(family)))
    assert d_loss < 1e-10
    assert d_norm < 1e-10


# --- seeded bugs -----------------------------------------------------------------------------------------------------


def halved_gradients(patch: pytest.MonkeyPatch) -> None:
    """As if they were averaged over two ranks and not summed: AdamW hides it."""
    clip = optim.clip_gradients

    def halved(parameters: Any, largest: float) -> Tensor:
        for parameter in parameters:
            parameter.grad *= 0.5
        return clip(parameters, largest)

    patch.setattr(step, "clip_gradients", halved)


def mean_of_means(patch: pytest.MonkeyPatch) -> None:
    """Each micro-batch counts the same, however many predictions it has."""
    call = SequenceLoss.__call__

    def averaged(self: SequenceLoss, ids: Tensor, segments: Tensor | None = None) -> Tensor:
        return call(self, ids, segments) / len(ids) * 2

    patch.setattr(SequenceLoss, "__call__", averaged)


def same_data_twice(patch: pytest.MonkeyPatch) -> None:
    """The last micro-batch learns from the first sequence again."""
    call = SequenceLoss.__call__
    first: dict[str, Tensor] = {}

    def repeated(self: SequenceLoss, ids: Tensor, segments: Tensor | None = None) -> Tensor:
        if len(ids) == MICRO:
            first["ids"] = ids
        return call(self, first["ids"][: len(ids)], segments)

    patch.setattr(SequenceLoss, "__call__", repeated)


def untied_gradient(patch: pytest.MonkeyPatch) -> None:
    """The head's share of a tied matrix's gradient is lost."""
    whole = losses.linear_loss
    patch.setattr(losses, "linear_loss", lambda hidden, weight, *rest: whole(hidden, weight.detach(), *rest))


def decayed_norms(patch: pytest.MonkeyPatch) -> None:
    make = torch.optim.AdamW

    def decayed(groups: list[dict[str, Any]], **options: Any) -> torch.optim.AdamW:
        return make([group | {"weight_decay": 0.3} for group in groups], **options)

    patch.setattr(torch.optim, "AdamW", decayed)


def late_schedule(patch: pytest.MonkeyPatch) -> None:
    """The rate of the step before."""
    rate = Pace.learning_rate
    patch.setattr(Pace, "learning_rate", lambda self, after: rate(self, Reached(after.steps - 1)))


def shifted_slopes(patch: pytest.MonkeyPatch) -> None:
    """Heads have each other's distances, as where a rank forgets which heads are its own."""
    from bloomery.model import decoder

    slopes = decoder.alibi_slopes
    patch.setattr(decoder, "alibi_slopes", lambda heads: slopes(heads)[::-1])


BUGS: list[Callable[[pytest.MonkeyPatch], None]] = [
    halved_gradients,
    mean_of_means,
    same_data_twice,
    untied_gradient,
    decayed_norms,
    late_schedule,
    shifted_slopes,
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_seeded_bug_is_seen_within_four_steps(
    bug: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = make_loss("bloom")
    theirs = train_theirs(theirs_of(loss, "bloom", tmp_path / "model"), steps=4)
    bug(monkeypatch)
    d_loss, d_norm = worst(train_ours(loss, tmp_path, steps=4), theirs)
    assert d_loss > 1e-5 or d_norm > 1e-5
