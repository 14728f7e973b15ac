"""A whole run: it learns, repeats itself, can be interrupted, and leaves a folder that transformers loads."""

import json
import math
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bloomery.train.config import Optim, TrainConfig
from bloomery.train.step import StepResult
from bloomery.train.trainer import Trainer, TrainResult

Changed = Callable[..., TrainConfig]


def metrics(options: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (options.run.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def learned(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, TrainResult]:
    """One run that is long enough to learn something."""
    from bloomery.train.config import Data, ModelShape, Run

    options = TrainConfig(
        data=Data(train=(str(corpus / "train-*.txt"),), valid=(str(corpus / "valid.txt"),)),
        model=ModelShape(family="bloom", vocab_size=320, hidden_size=64, num_layers=2, num_heads=4, seq_len=48),
        optim=Optim(lr=1e-2, warmup_steps=10),
        run=Run(out=tmp_path_factory.mktemp("run") / "story", steps=120, eval_interval=60, dtype="float32"),
    )
    trainer = Trainer(options)
    return trainer, trainer.run()


def test_a_run_learns_far_more_than_the_frequencies_of_tokens(learned: tuple[Trainer, TrainResult]) -> None:
    trainer, result = learned
    held_out = trainer.text.valid.open().tolist()
    counts = Counter(held_out)
    unigram = -sum(n * math.log(n / len(held_out)) for n in counts.values()) / len(held_out)
    assert result.evaluation.loss < 0.6 * unigram
    assert result.evaluation.loss == [line for line in metrics(trainer.config) if "eval_loss" in line][-1]["eval_loss"]


def test_metrics_say_where_the_run_stands(learned: tuple[Trainer, TrainResult]) -> None:
    lines = metrics(learned[0].config)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(10, 121, 10))
    assert steps[-1].keys() == {
        "step", "samples", "tokens", "loss", "grad_norm", "lr", "tokens_per_s", "ms_per_step", "dropped"
    }  # fmt: skip
    assert (steps[0]["samples"], steps[0]["tokens"], steps[0]["lr"]) == (80, 80 * 48, 1e-2)
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [60, 120]
    assert evaluations[0]["eval_perplexity"] == pytest.approx(math.exp(evaluations[0]["eval_loss"]))
    assert evaluations[0]["eval_bits_per_byte"] > evaluations[1]["eval_bits_per_byte"]


@torch.no_grad()
def test_transformers_loads_the_folder_and_agrees(learned: tuple[Trainer, TrainResult]) -> None:
    trainer, result = learned
    theirs = AutoModelForCausalLM.from_pretrained(result.model)
    tokenizer = AutoTokenizer.from_pretrained(result.model)
    text = "the widow sold two geese by the river. a clerk lost"
    ids = tokenizer(text).input_ids
    assert ids == trainer.text.tokenizer.encode(text).ids
    positions, attend = trainer.loss._for_shape(1, len(ids))
    ours = trainer.decoder.logits(trainer.decoder(torch.tensor(ids), positions, attend))
    expected = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * max(1, expected.abs().max().item()))
    assert theirs.config.seq_length == 48
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id, theirs.config.pad_token_id) == (1, 2, 3)
    assert theirs.generation_config.eos_token_id == 2


def test_the_folder_holds_a_model_and_nothing_else(learned: tuple[Trainer, TrainResult]) -> None:
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in learned[1].model.iterdir()} == names | {"README.md"}
    card = (learned[1].model / "README.md").read_text(encoding="utf-8")
    assert "valid.txt" in card
    assert f"{learned[1].evaluation.bits_per_byte:.4f}" in card
    assert f"{120 * 8 * 48:,}" in card


def losses(options: TrainConfig) -> list[float]:
    Trainer(options).run()
    return [line["loss"] for line in metrics(options) if "loss" in line]


def test_the_same_seed_gives_the_same_losses(options: TrainConfig, changed: Changed, tmp_path: Path) -> None:
    first = losses(options)
    again = losses(changed(options, "run", out=tmp_path / "again"))
    other = losses(changed(options, "run", out=tmp_path / "other", seed=1))
    assert len(first) == 8
    assert first == again
    assert first[0] != other[0]


def test_bf16_weights_are_written_where_bf16_was_asked_for(options: TrainConfig, changed: Changed) -> None:
    result = Trainer(changed(options, "run", dtype="bfloat16", steps=5)).run()
    written = AutoModelForCausalLM.from_pretrained(result.model)
    assert {p.dtype for p in written.parameters()} == {torch.bfloat16}


def test_another_family_trains_by_the_same_loop(options: TrainConfig, changed: Changed) -> None:
    result = Trainer(changed(options, "model", family="gpt2")).run()
    assert AutoModelForCausalLM.from_pretrained(result.model).config.model_type == "gpt2"


def test_an_interrupt_finishes_the_step_writes_the_model_and_is_raised_again(
    options: TrainConfig, changed: Changed, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(changed(options, "run", log_interval=5))
    step = trainer.take_step

    def interrupted(number: int, windows: Tensor) -> StepResult:
        if number == 2:
            signal.raise_signal(signal.SIGINT)
        return step(number, windows)

    trainer.take_step = interrupted  # type: ignore[assignment]
    interrupted.dropped = 0  # type: ignore[attr-defined]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopped after step 3 of 8" in caplog.text
    assert [line["step"] for line in metrics(options)] == [3, 3]
    AutoModelForCausalLM.from_pretrained(options.run.out / "model")


def test_a_cap_on_the_held_out_text_is_kept(options: TrainConfig, changed: Changed) -> None:
    result = Trainer(replace(changed(options, "data", valid_windows=2))).run()
    assert result.evaluation.tokens == 2 * 48


def test_step_s_learns_from_the_samples_from_s_times_the_batch_on(
    options: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(options)
    taken, take = [], trainer.samples.take

    def watched(first: int, count: int) -> Any:
        taken.append((first, count))
        return take(first, count)

    monkeypatch.setattr(trainer.samples, "take", watched)
    trainer.run()
    assert taken == [(4 * step, 4) for step in range(8)]
