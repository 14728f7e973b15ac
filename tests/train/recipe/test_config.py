"""Options that cannot be right are refused in one line that names them; the rest survive being written and read."""

import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from bloomery.errors import UsageError
from bloomery.train.recipe.config import TrainConfig
from bloomery.train.recipe.pace_options import Batch, Optim, Schedule, Stop
from bloomery.train.recipe.run_options import Begin, Data, ModelShape, Run, Save
from bloomery.train.trainer import Trainer
from tiny import Tiny

ROOT = Path(__file__).parents[3]

BAD: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (ModelShape, {"hidden_size": 0}, "model.hidden_size is 0"),
    (ModelShape, {"hidden_size": 100, "num_heads": 3}, "num_heads 3 does not divide"),
    (ModelShape, {"num_kv_heads": 3}, "num_kv_heads 3 does not divide model.num_heads 4"),
    (ModelShape, {"num_experts": 2, "experts_per_token": 3}, "experts_per_token is 3 of 2"),
    (ModelShape, {"experts_per_token": 1}, "experts_per_token is 1 of 1"),
    (ModelShape, {"start": "dickens", "shape": "bloom-560m"}, "two models"),
    (ModelShape, {"vocab_size": 259}, "model.vocab_size is 259"),
    (ModelShape, {"seq_len": 0}, "model.seq_len is 0"),
    (ModelShape, {"dropout": 1.0}, "model.dropout is 1.0"),
    (ModelShape, {"init_std": 0.0}, "model.init_std is 0.0"),
    (ModelShape, {"hidden_size": 10**9}, "model.hidden_size is 1000000000"),
    (ModelShape, {"vocab_size": 2**31}, "model.vocab_size is 2147483648"),
    (ModelShape, {"hidden_size": 10**20}, "model.hidden_size is 100000000000000000000"),
    (Data, {"train": (), "valid": ("a",)}, "data.train names no file"),
    (Data, {"train": ("a",)}, "data.valid or data.split"),
    (Data, {"train": ("a",), "valid": ("b",), "keys": ()}, "data.keys names no field"),
    (Data, {"train": ("a",), "valid": ("b",), "split": "9,1"}, "data.valid or data.split"),
    (Data, {"train": ("a",), "valid": ("b",), "weights": (1.0, 2.0)}, "2 numbers for 1 entries"),
    (Data, {"train": ("a",), "valid": ("b",), "weights": (1.0,)}, "leave it out for one"),
    (Data, {"train": ("a", "b"), "valid": ("b",), "weights": (1.0, 0.0)}, "data.weights holds 0.0"),
    (Data, {"train": ("a",), "valid": ("b",), "valid_windows": 0}, "data.valid_windows is 0"),
    (Optim, {"lr": 0.0}, "optim.lr is 0.0"),
    (Optim, {"lr": float("nan")}, "optim.lr is nan"),
    (Optim, {"lr": float("inf")}, "optim.lr is inf"),
    (Optim, {"beta2": 1.0}, "optim.beta2 is 1.0"),
    (Optim, {"weight_decay": -0.1}, "optim.weight_decay is -0.1"),
    (Optim, {"clip": -1.0}, "optim.clip is -1.0"),
    (Optim, {"momentum": 0.5}, "optim.momentum is muon's"),
    (Optim, {"name": "sgd"}, "optim.name 'sgd'"),
    (Schedule, {"min_lr_ratio": 1.5}, "schedule.min_lr_ratio is 1.5"),
    (Schedule, {"warmup": -1}, "schedule.warmup is -1"),
    (Schedule, {"kind": "constant", "decay": 5}, "schedule.decay is for a rate that goes down"),
    (Schedule, {"kind": "constant", "min_lr_ratio": 0.5}, "schedule.min_lr_ratio is for a rate that goes down"),
    (Schedule, {"kind": "stairs"}, "schedule.kind 'stairs'"),
    (Schedule, {"unit": "epochs"}, "schedule.unit 'epochs'"),
    (Batch, {"size": 0}, "batch.size is 0"),
    (Batch, {"size": 10**20}, "batch.size is 100000000000000000000"),
    (Batch, {"micro": 0}, "batch.micro is 0"),
    (Batch, {"micro": 9}, "batch.micro is 9, and a step has 8"),
    (Batch, {"short_increment": 4}, "batch.short_increment means nothing"),
    (Batch, {"ramp_start": 4}, "belong together"),
    (Batch, {"size": 64, "ramp_start": 3, "ramp_increment": 8, "ramp_samples": 9}, "does not lead from 3 to 64"),
    (Batch, {"size": 2, "ramp_start": 4, "ramp_increment": 2, "ramp_samples": 9}, "does not lead from 4 to 2"),
    (Batch, {"short_start": 8}, "belong together"),
    (Stop, {"minutes": 0.0}, "stop.minutes is 0.0"),
    (Stop, {"skipped": 0}, "stop.skipped is 0"),
    (Save, {"keep": 0}, "save.keep is 0"),
    (Begin, {"load": "weights"}, "begin.load is for another run"),
    (Begin, {"load": "half", "path": Path("x")}, "begin.load 'half'"),
    (Run, {"out": Path("x"), "steps": 0}, "run.steps is 0"),
    (Run, {"out": Path("x"), "steps": 5, "tokens": 5}, "run.steps and run.tokens"),
    (Run, {"out": Path("x"), "dtype": "float16"}, "run.dtype 'float16'"),
    (Run, {"out": Path("x"), "seed": -1}, "run.seed is -1"),
    (Run, {"out": Path("x"), "threads": 0}, "run.threads is 0"),
    (Run, {"out": Path("x"), "threads": 10**12}, "run.threads is 1000000000000"),
    (Run, {"out": Path("x"), "profile": (3,)}, "run.profile is [3]"),
    (Run, {"out": Path("x"), "profile": (3, 2)}, "run.profile is [3, 2]"),
]


@pytest.mark.parametrize(("section", "fields", "said"), BAD, ids=[said for _, _, said in BAD])
def test_an_impossible_option_is_refused_by_name(
    section: Callable[..., Any], fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as raised:
        section(**fields)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_warm_up_longer_than_the_run_is_refused(options: TrainConfig) -> None:
    with pytest.raises(UsageError, match=r"schedule\.warmup 9 is more than the run's 8 steps"):
        replace(options, schedule=Schedule(warmup=9))


def refusal(options: TrainConfig) -> str:
    with pytest.raises(UsageError) as raised:
        Trainer(options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


Changed = Callable[..., TrainConfig]


def test_a_pattern_that_matches_nothing_is_named(options: TrainConfig, changed: Changed) -> None:
    said = refusal(changed(options, "data", train=(*options.data.train, "nowhere/*.txt")))
    assert "data.train" in said
    assert "'nowhere/*.txt'" in said
    assert not options.run.out.exists()


def test_a_held_out_file_may_not_be_learned_from(options: TrainConfig, changed: Changed, corpus: Path) -> None:
    assert "both hold" in refusal(changed(options, "data", train=(str(corpus / "*.txt"),)))


def test_an_unknown_family_is_refused_with_the_known_ones(options: TrainConfig, changed: Changed) -> None:
    said = refusal(changed(options, "model", family="blossom"))
    assert "'blossom'" in said
    assert "bloom" in said


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    options: TrainConfig, changed: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("bloomery.train.trainer.read_text", lambda *_: pytest.fail("the text was read"))
    assert "cannot be written" in refusal(changed(options, "run", out=tmp_path / "file" / "out"))


def test_an_earlier_run_is_not_overwritten(options: TrainConfig) -> None:
    options.run.out.mkdir()
    (options.run.out / "metrics.jsonl").write_text("{}\n")
    assert "earlier run" in refusal(options)
    assert (options.run.out / "metrics.jsonl").read_text() == "{}\n"


def test_a_text_too_small_for_the_vocabulary_is_refused(options: TrainConfig, changed: Changed) -> None:
    assert "vocabulary" in refusal(changed(options, "model", vocab_size=4096))


def test_a_text_shorter_than_two_sequences_is_refused(options: TrainConfig, changed: Changed) -> None:
    assert "lower the sequence length" in refusal(changed(options, "model", seq_len=100_000))


def test_a_held_out_text_without_anything_to_predict_is_refused(
    options: TrainConfig, changed: Changed, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("")
    assert "too little to measure on" in refusal(changed(options, "data", valid=(str(tmp_path / "empty.txt"),)))


def test_a_file_that_is_not_utf_8_is_named(options: TrainConfig, changed: Changed, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    said = refusal(changed(options, "data", valid=(str(tmp_path / "latin.txt"),)))
    assert "latin.txt is not UTF-8 at byte 3" in said


SECTIONS = {field.name: field.type for field in fields(TrainConfig)}


def from_recipe(text: str) -> TrainConfig:
    def value(item: Any) -> Any:
        return tuple(item) if isinstance(item, list) else item

    tables = tomllib.loads(text)
    sections = {name: {key: value(item) for key, item in table.items()} for name, table in tables.items()}
    sections["run"]["out"] = Path(sections["run"]["out"])
    return TrainConfig(**{name: SECTIONS[name](**table) for name, table in sections.items()})  # type: ignore[operator]


def test_the_resolved_options_are_written_as_a_recipe_of_the_same_run(options: TrainConfig) -> None:
    Trainer(options)
    assert from_recipe((options.run.out / "recipe.toml").read_text(encoding="utf-8")) == options


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("train-*.toml")), ids=lambda file: file.stem)
def test_a_recipe_of_ours_holds_no_unknown_key(file: Path) -> None:
    recipe = from_recipe(file.read_text(encoding="utf-8"))
    assert not set(recipe.data.valid) & set(recipe.data.train)


def test_the_dickens_recipe_keeps_its_held_out_file() -> None:
    recipe = from_recipe((ROOT / "recipes" / "train-dickens.toml").read_text(encoding="utf-8"))
    assert recipe.data.valid == ("corpus/dickens/hard-times.txt",)
    assert len(recipe.data.train) == 10


def test_importing_the_options_loads_neither_torch_nor_numpy() -> None:
    check = "import sys, bloomery.train.recipe.config; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize("begin", ["start", "shape"])
def test_more_positions_than_a_model_has_learned_are_refused_before_any_work(
    options: TrainConfig, changed: Changed, gpt2: Tiny, begin: str
) -> None:
    config = AutoConfig.from_pretrained(gpt2.path)
    name = str(gpt2.path if begin == "start" else gpt2.path / "config.json")
    longer = replace(options, model=ModelShape(**{begin: name}, seq_len=config.n_positions + 1))  # type: ignore[arg-type]
    said = f"model.seq_len is {config.n_positions + 1}, and the model has learned positions up to {config.n_positions}"
    assert said in refusal(longer)
    assert not options.run.out.exists()


@pytest.mark.parametrize("start", [48, 64])
def test_sequences_that_begin_as_long_as_they_get_are_refused_before_any_work(options: TrainConfig, start: int) -> None:
    growing = replace(options, batch=Batch(size=4, short_start=start, short_steps=4))
    assert f"batch.short_start is {start}, and a full sequence has 48 tokens: lower it" in refusal(growing)
    assert not options.run.out.exists()


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_model_that_is_there_already_is_refused_before_any_work(options: TrainConfig, kind: str) -> None:
    options.run.out.mkdir()
    model = options.run.out / "model"
    {"folder": model.mkdir, "file": model.touch, "link": lambda: model.symlink_to("nowhere")}[kind]()
    assert "holds an earlier run (model)" in refusal(options)
    assert [file.name for file in options.run.out.iterdir()] == ["model"]


def test_a_model_too_large_for_the_memory_is_refused(options: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("can't allocate memory: you tried to allocate 1200000000000 bytes.")

    monkeypatch.setattr("bloomery.train.model.Decoder", full)
    assert "make it smaller" in refusal(options)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_experts": 4}, "num_experts"),
        ({"ffn_size": 100}, "ffn_size"),
        ({"num_kv_heads": 2}, "num_kv_heads"),
        ({"family": "mixtral"}, "mixtral"),
        ({"shape": "bloom-560m"}, "model.family stands beside model.shape"),
        ({"start": "dickens", "vocab_size": 4096}, "model.family stands beside model.start"),
        ({"start": "nowhere/at/all"}, "nowhere"),
    ],
    ids=str,
)
def test_sizes_that_a_model_cannot_have_are_refused(
    options: TrainConfig, changed: Changed, fields: dict[str, Any], said: str
) -> None:
    assert said in refusal(changed(options, "model", **fields))
