"""Held-out loss and bits per byte are those of a plain float64 computation."""

import math

import numpy as np
import pytest
import torch

from bloomery.families import FAMILIES
from bloomery.train.config import ModelShape
from bloomery.train.evaluate import Evaluator
from bloomery.train.loss import SequenceLoss
from bloomery.train.setup import build_decoder

LENGTH = 16
BYTES = np.arange(300) % 5 + 1
BYTES[:4] = 0


@pytest.fixture(scope="module")
def loss() -> SequenceLoss:
    shape = ModelShape(family="bloom", vocab_size=300, hidden_size=32, num_layers=2, num_heads=4, seq_len=LENGTH)
    decoder = build_decoder(shape, FAMILIES["bloom"], 0)
    with torch.no_grad():
        decoder.embed.tokens.weight.mul_(20)  # a model with opinions
    return SequenceLoss(decoder, torch.float32)


def tokens(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 300, count).astype(np.uint16)


def plain(loss: SequenceLoss, text: np.ndarray) -> float:
    """Nats of every token but the first, one window after the other, softmax in float64."""
    nats = 0.0
    for at in range(0, len(text) - 1, LENGTH):
        window = torch.from_numpy(text[at : at + LENGTH + 1].astype(np.int64))
        positions, attend = loss._for_shape(1, len(window) - 1)
        with torch.no_grad():
            logits = loss.decoder.logits(loss.decoder(window[:-1], positions, attend)).double().numpy()
        highest = logits.max(axis=1, keepdims=True)
        log_sum = (highest + np.log(np.exp(logits - highest).sum(axis=1, keepdims=True)))[:, 0]
        nats += float((log_sum - logits[np.arange(len(logits)), window[1:].numpy()]).sum())
    return nats


@pytest.mark.parametrize("count", [2, 16, 17, 18, 100, 129])
def test_bits_per_byte_equal_a_plain_float64_computation(loss: SequenceLoss, count: int) -> None:
    text = tokens(count)
    found = Evaluator(text, BYTES, LENGTH, batch_size=3)(loss)
    expected = plain(loss, text)
    assert found.tokens == count - 1
    assert found.text_bytes == BYTES[text[1:]].sum()
    assert found.loss == pytest.approx(expected / (count - 1), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(expected / (count - 1)), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(expected / math.log(2) / BYTES[text[1:]].sum(), rel=1e-6)


def test_a_cap_measures_the_first_windows_only(loss: SequenceLoss) -> None:
    text = tokens(200)
    found = Evaluator(text, BYTES, LENGTH, batch_size=4, most=5)(loss)
    assert found.tokens == 5 * LENGTH
    assert found.nats == pytest.approx(plain(loss, text[: 5 * LENGTH + 1]), rel=1e-6)


def test_measuring_leaves_no_gradient(loss: SequenceLoss) -> None:
    Evaluator(tokens(40), BYTES, LENGTH, batch_size=4)(loss)
    assert all(p.grad is None for p in loss.decoder.parameters())
