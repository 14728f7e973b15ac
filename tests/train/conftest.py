"""A small text with a grammar of its own, and the options of a small run on it. Knows no test."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bloomery.train.recipe.config import TrainConfig
from bloomery.train.recipe.log_options import LogOptions
from bloomery.train.recipe.pace_options import Batch, Optim, Schedule
from bloomery.train.recipe.run_options import Data, ModelShape, Run

PEOPLE = ["the miller", "a clerk", "the widow", "an old sailor", "the schoolmaster", "his daughter"]
DEEDS = ["sold", "lost", "found", "carried", "wanted", "forgot"]
THINGS = ["three loaves", "a café table", "the letter", "a silver spoon", "two geese", "the key"]
PLACES = ["at the mill", "in London", "by the river", "on Sunday", "before dinner"]


def story(sentences: int, seed: int) -> str:
    """Sentences whose words follow each other by rule, so that a model can learn far more than their frequencies."""
    chosen = random.Random(seed)
    kinds = (PEOPLE, DEEDS, THINGS, PLACES)
    return " ".join(" ".join(chosen.choice(kind) for kind in kinds) + "." for _ in range(sentences))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two documents to learn from and a held-out one."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, sentences in {"train-1": 300, "train-2": 200, "valid": 60}.items():
        (folder / f"{name}.txt").write_text(story(sentences, seed=len(name) + sentences), encoding="utf-8")
    return folder


@pytest.fixture
def options(corpus: Path, tmp_path: Path) -> TrainConfig:
    """A run of a few seconds."""
    return TrainConfig(
        data=Data(train=(str(corpus / "train-*.txt"),), valid=(str(corpus / "valid.txt"),)),
        model=ModelShape(family="bloom", vocab_size=320, hidden_size=64, num_layers=2, num_heads=4, seq_len=48),
        optim=Optim(lr=1e-2),
        schedule=Schedule(warmup=5),
        batch=Batch(size=4),
        run=Run(out=tmp_path / "out", steps=8, eval_interval=100, log_interval=1, dtype="float32"),
        log=LogOptions(peak_tflops=1.0),
    )


@pytest.fixture
def changed() -> Callable[..., TrainConfig]:
    """The options with some of a section's fields changed: changed(options, "run", steps=3)."""

    def change(config: TrainConfig, section: str, **fields: Any) -> TrainConfig:
        return replace(config, **{section: replace(getattr(config, section), **fields)})

    return change
