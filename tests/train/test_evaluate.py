"""Held-out loss and bits per byte are those of a plain float64 computation."""

import math

import numpy as np
import pytest
import torch

from bloomery.data.source import Source
from bloomery.train.evaluate import Evaluation, Evaluator, pooled
from bloomery.train.loss import SequenceLoss
from bloomery.train.passes import add_dropout_
from training import make_loss

LENGTH = 16
BYTES = np.arange(300) % 5 + 1
BYTES[:4] = 0


@pytest.fixture(scope="module")
def loss() -> SequenceLoss:
    made = make_loss("bloom")
    with torch.no_grad():
        made.decoder.embed.tokens.weight.mul_(20)  # a model with opinions
    return made


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
    found = Evaluator(Source(text), BYTES, LENGTH, batch_size=3)(loss)
    expected = plain(loss, text)
    assert found.tokens == count - 1
    assert found.text_bytes == BYTES[text[1:]].sum()
    assert found.loss == pytest.approx(expected / (count - 1), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(expected / (count - 1)), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(expected / math.log(2) / BYTES[text[1:]].sum(), rel=1e-6)


def test_a_cap_measures_the_first_windows_only(loss: SequenceLoss) -> None:
    text = tokens(200)
    found = Evaluator(Source(text), BYTES, LENGTH, batch_size=4, most=5)(loss)
    assert found.tokens == 5 * LENGTH
    assert found.nats == pytest.approx(plain(loss, text[: 5 * LENGTH + 1]), rel=1e-6)


def test_without_byte_lengths_there_are_no_bits_per_byte(loss: SequenceLoss) -> None:
    found = Evaluator(Source(tokens(40)), None, LENGTH, batch_size=4)(loss)
    assert found.bits_per_byte is None
    assert set(found.values("a")) == {"eval/a/loss", "eval/a/perplexity", "eval/a/tokens"}


def test_isolated_documents_are_measured_as_if_each_stood_alone(loss: SequenceLoss) -> None:
    """Windows of one document each give the same as documents that share a window."""
    text = tokens(1 + 2 * LENGTH)
    ends = np.array([5, 11, LENGTH, LENGTH + 9, len(text)])
    found = Evaluator(Source(text, ends=ends), BYTES, LENGTH, batch_size=2, isolate_documents=True)(loss)
    parts = [text[a:b] for a, b in [(0, 5), (5, 11), (11, 16), (16, 25), (25, 33)]]
    assert found.tokens == sum(len(part) - 1 for part in parts)
    assert found.nats == pytest.approx(sum(plain(loss, part) for part in parts), rel=1e-6)


def test_measuring_leaves_no_gradient_drops_nothing_and_goes_on_training() -> None:
    loss, same = make_loss("bloom"), make_loss("bloom")
    add_dropout_(loss.decoder, 0.5)
    loss.attention_dropout = 0.5
    text = Source(tokens(40))
    found, expected = (Evaluator(text, BYTES, LENGTH, batch_size=4)(one) for one in (loss, same))
    assert found == expected
    assert loss.decoder.training
    assert all(p.grad is None for p in loss.decoder.parameters())


def test_sets_together_are_as_one() -> None:
    both = pooled({"a": Evaluation(10.0, 4, 20), "b": Evaluation(2.0, 2, 4)})
    assert (both.loss, both.text_bytes) == (2.0, 24)
    assert pooled({"a": Evaluation(10.0, 4, 20), "b": Evaluation(2.0, 2, None)}).text_bytes is None
