"""A whole run: it learns, repeats itself, stops when it is asked to, goes on as if it had not, and leaves a folder that
transformers loads."""

import json
import logging
import math
import os
import signal
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bloomery.cli import main
from bloomery.errors import CheckpointError, UsageError
from bloomery.train.evaluate import Evaluation, pooled
from bloomery.train.recipe.config import TrainConfig
from bloomery.train.recipe.pace_options import Batch, Optim, Schedule, Stop
from bloomery.train.recipe.run_options import Begin, Save
from bloomery.train.step import NotFinite, StepResult, TrainStep
from bloomery.train.trainer import Trainer, TrainResult

Changed = Callable[..., TrainConfig]


def lines(options: TrainConfig) -> list[dict[str, Any]]:
    """Figures of the run, its events left out."""
    text = (options.run.out / "metrics.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if "event" not in line]


def losses(options: TrainConfig) -> dict[int, tuple[float, float]]:
    """Step -> loss and gradient norm."""
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines(options) if "loss" in line}


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """All that a step changes."""
    found = {name: p.detach().clone() for name, p in trainer.decoder.named_parameters()}
    for name, kept in trainer.optimizers.state().items():
        found |= {f"{key} of {name}": tensor.clone() for key, tensor in kept.items()}
    return found


def differing(one: Trainer, other: Trainer) -> list[str]:
    theirs = weights(other)
    return [name for name, tensor in weights(one).items() if not torch.equal(tensor, theirs[name])]


@pytest.fixture(scope="module")
def learned(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, TrainResult]:
    """One run that is long enough to learn something."""
    from bloomery.train.recipe.log_options import LogOptions
    from bloomery.train.recipe.run_options import Data, ModelShape, Run

    options = TrainConfig(
        data=Data(train=(str(corpus / "train-*.txt"),), valid=(str(corpus / "valid.txt"),)),
        model=ModelShape(family="bloom", vocab_size=320, hidden_size=64, num_layers=2, num_heads=4, seq_len=48),
        optim=Optim(lr=1e-2),
        schedule=Schedule(warmup=10),
        run=Run(out=tmp_path_factory.mktemp("run") / "story", steps=120, eval_interval=60, dtype="float32"),
        log=LogOptions(peak_tflops=1.0),
    )
    trainer = Trainer(options)
    return trainer, trainer.run()


def test_a_run_learns_far_more_than_the_frequencies_of_tokens(learned: tuple[Trainer, TrainResult]) -> None:
    trainer, result = learned
    held_out = trainer.text.valid["valid"].ids.tolist()
    counts = Counter(held_out)
    unigram = -sum(n * math.log(n / len(held_out)) for n in counts.values()) / len(held_out)
    assert result.evaluation["valid"].loss < 0.6 * unigram
    assert result.evaluation["valid"].loss == lines(trainer.config)[-1]["eval/valid/loss"]


def test_metrics_say_where_the_run_stands(learned: tuple[Trainer, TrainResult]) -> None:
    found = lines(learned[0].config)
    steps = [line for line in found if "loss" in line]
    assert [line["step"] for line in steps] == list(range(10, 121, 10))
    assert steps[-1].keys() >= {
        "step", "samples", "tokens", "loss", "grad_norm", "lr", "tokens_per_s", "ms_per_step", "skipped", "batch_size",
        "seq_len", "tflops", "mfu", "hfu", "data_wait_ms", "rss_bytes",
    }  # fmt: skip
    assert (steps[0]["samples"], steps[0]["tokens"]) == (80, 80 * 48)
    assert steps[0]["lr"] == pytest.approx(1e-2)
    measured = [line for line in found if "eval/valid/loss" in line]
    assert [line["step"] for line in measured] == [60, 120]
    assert measured[0]["eval/valid/perplexity"] == pytest.approx(math.exp(measured[0]["eval/valid/loss"]))
    assert measured[0]["eval/valid/bits_per_byte"] > measured[1]["eval/valid/bits_per_byte"]


@torch.no_grad()
def test_transformers_loads_the_folder_and_agrees(learned: tuple[Trainer, TrainResult]) -> None:
    trainer, result = learned
    assert result.model is not None
    assert trainer.text.words is not None
    theirs = AutoModelForCausalLM.from_pretrained(result.model)
    tokenizer = AutoTokenizer.from_pretrained(result.model)
    text = "the widow sold two geese by the river. a clerk lost"
    ids = tokenizer(text).input_ids
    assert ids == trainer.text.words.tokenizer.encode(text).ids
    positions, attend = trainer.loss._for_shape(1, len(ids))
    ours = trainer.decoder.logits(trainer.decoder(torch.tensor(ids), positions, attend))
    expected = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * max(1, expected.abs().max().item()))
    assert theirs.config.seq_length == 48
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id, theirs.config.pad_token_id) == (1, 2, 3)
    assert theirs.generation_config.eos_token_id == 2


def test_the_folder_holds_a_model_and_nothing_else(learned: tuple[Trainer, TrainResult]) -> None:
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    model = learned[1].model
    assert model is not None
    assert {file.name for file in model.iterdir()} == names | {"README.md"}
    card = (model / "README.md").read_text(encoding="utf-8")
    assert "valid.txt" in card
    assert f"{learned[1].evaluation['valid'].bits_per_byte:.4f}" in card
    assert f"{120 * 8 * 48:,}" in card


def test_the_same_seed_gives_the_same_losses(options: TrainConfig, changed: Changed, tmp_path: Path) -> None:
    found = []
    for out, seed in (("first", 0), ("again", 0), ("other", 1)):
        config = changed(options, "run", out=tmp_path / out, seed=seed)
        Trainer(config).run()
        found.append(losses(config))
    assert len(found[0]) == 8
    assert found[0] == found[1]
    assert found[0][1] != found[2][1]


def test_bf16_weights_are_written_where_bf16_was_asked_for(options: TrainConfig, changed: Changed) -> None:
    result = Trainer(changed(options, "run", dtype="bfloat16", steps=5)).run()
    written = AutoModelForCausalLM.from_pretrained(result.model)
    assert {p.dtype for p in written.parameters()} == {torch.bfloat16}


SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"num_kv_heads": 2, "ffn_size": 96},
    "mixtral": {"num_kv_heads": 2, "num_experts": 4, "experts_per_token": 2},
}


@pytest.mark.parametrize("family", SIZES)
def test_another_family_trains_by_the_same_loop(options: TrainConfig, changed: Changed, family: str) -> None:
    result = Trainer(changed(options, "model", family=family, **SIZES[family])).run()
    config = AutoModelForCausalLM.from_pretrained(result.model).config
    assert config.model_type == family
    for name, value in SIZES[family].items():
        theirs = {"num_kv_heads": "num_key_value_heads", "ffn_size": "intermediate_size"} | {
            "num_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"
        }  # fmt: skip
        assert getattr(config, theirs[name]) == value


def test_a_cap_on_the_held_out_text_is_kept(options: TrainConfig, changed: Changed) -> None:
    result = Trainer(changed(options, "data", valid_windows=2)).run()
    assert result.evaluation["valid"].tokens == 2 * 48


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


def test_held_out_sets_have_their_names_and_a_split_is_by_documents(
    options: TrainConfig, changed: Changed, corpus: Path, tmp_path: Path
) -> None:
    two = (f"one={corpus / 'valid.txt'}", str(corpus / "train-2.txt"))
    named = changed(options, "data", train=(str(corpus / "train-1.txt"),), valid=two)
    assert set(Trainer(named).run().evaluation) == {"one", "train-2"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"the miller sold {n} loaves. " * 40}) + "\n" for n in range(20)))
    split = changed(options, "data", train=(str(rows),), valid=(), split="16,3,1")
    trainer = Trainer(changed(changed(split, "run", out=tmp_path / "split"), "model", vocab_size=290))
    whole = trainer.text.train[0].ends, trainer.text.valid["rows"].ends
    assert (len(whole[0]), len(whole[1])) == (16, 3)


# --- everything at once, interrupted anywhere ------------------------------------------------------------------------


EVERYTHING = {
    "optim": Optim(name="muon", lr=5e-3),
    "schedule": Schedule(kind="wsd", unit="samples", warmup=10, decay=12),
    "batch": Batch(size=6, micro=2, ramp_start=2, ramp_increment=2, ramp_samples=12, short_start=16, short_steps=4),
    "save": Save(interval=2, keep=2),
}


def everything(options: TrainConfig, changed: Changed, out: Path) -> TrainConfig:
    """Dropout, Muon, a growing batch, growing sequences, isolated documents, blended sources, skipped samples."""
    config = changed(options, "run", out=out, steps=None, samples=44, eval_interval=3, recompute=True)
    config = changed(config, "model", dropout=0.1, attention_dropout=0.1)
    train = (options.data.train[0].replace("*", "1"), options.data.train[0].replace("*", "2"))
    config = changed(config, "data", train=train, weights=(0.7, 0.3), isolate_documents=True, skip=("3-5",))
    return replace(config, **EVERYTHING)  # type: ignore[arg-type]


def test_resumed_equals_uninterrupted_to_the_last_bit(options: TrainConfig, changed: Changed, tmp_path: Path) -> None:
    whole = Trainer(everything(options, changed, tmp_path / "whole"))
    result = whole.run()
    assert result.reached.samples == 44
    config = everything(options, changed, tmp_path / "parts")
    for number in range(20):
        trainer = Trainer(replace(config, stop=Stop(steps=1 + number % 2)), resume=number > 0)
        if trainer.run().stopped is None:
            break
    assert number > 3
    assert differing(whole, trainer) == []
    assert losses(config) == losses(whole.config)
    assert trainer.reached == result.reached
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "parts/model" / name).read_bytes() == (tmp_path / "whole/model" / name).read_bytes()


def test_begun_from_all_of_another_resumed_equals_uninterrupted(
    options: TrainConfig, changed: Changed, tmp_path: Path
) -> None:
    whole = Trainer(everything(options, changed, tmp_path / "whole"))
    result = whole.run()
    first = everything(options, changed, tmp_path / "first")
    Trainer(replace(first, stop=Stop(steps=3))).run()
    for number, path in enumerate((tmp_path / "first", tmp_path / "first/checkpoints/step-3")):
        config = replace(everything(options, changed, tmp_path / f"other-{number}"), begin=Begin(path=path))
        begun = Trainer(replace(config, stop=Stop(steps=2)))
        assert begun.reached.steps == 3
        begun.run()
        trainer = Trainer(config, resume=True)  # from its own checkpoint, and not from the other's
        assert trainer.reached.steps == 5
        assert trainer.run().reached == result.reached
        assert differing(whole, trainer) == []
        assert losses(config) == {step: found for step, found in losses(whole.config).items() if step > 3}
        for name in ("model.safetensors", "config.json", "tokenizer.json"):
            assert (config.run.out / "model" / name).read_bytes() == (tmp_path / "whole/model" / name).read_bytes()


@pytest.mark.slow
# What torch's compiler says of itself:
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated", "ignore:The .grad attribute of a Tensor")
def test_compiled_resumed_equals_uninterrupted_to_the_last_bit(
    options: TrainConfig, changed: Changed, tmp_path: Path
) -> None:
    """Shapes come in another order after a restart: what is compiled for them must compute the same."""
    grows = Batch(size=5, micro=2, short_start=16, short_increment=16, short_steps=6)
    config = replace(changed(options, "run", compile=True, eval_interval=3), batch=grows)
    config = changed(config, "model", dropout=0.1)

    def fresh(out: str, **more: Any) -> Trainer:
        torch.compiler.reset()  # as a new process has compiled nothing
        return Trainer(changed(replace(config, **more), "run", out=tmp_path / out), resume=out == "parts")

    whole = fresh("whole")
    result = whole.run()
    for steps in (2, 3, None):
        trainer = fresh("parts", stop=Stop(steps=steps))
        done = trainer.run()
        assert (done.stopped is None) == (steps is None)
    assert done.reached == result.reached
    assert differing(whole, trainer) == []
    assert losses(trainer.config) == losses(whole.config)


@pytest.mark.parametrize("steps", [3, 4])
def test_steps_skipped_in_a_row_are_counted_over_a_restart(
    options: TrainConfig, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Steps 3, 4 and 5 are not finite, and three in a row are too many."""
    take = TrainStep.__call__

    def spoiled(self: TrainStep, number: int, *rest: Any) -> StepResult:
        loss = self.loss
        if number in (2, 3, 4):
            self.loss = lambda *windows: loss(*windows) * math.inf  # type: ignore[assignment]
        try:
            return take(self, number, *rest)
        finally:
            self.loss = loss

    monkeypatch.setattr(TrainStep, "__call__", spoiled)
    config = replace(options, stop=Stop(skipped=3))
    with pytest.raises(NotFinite, match=r"step 5: .* 3 steps in a row") as uninterrupted:
        Trainer(replace(config, run=replace(config.run, out=config.run.out.parent / "whole"))).run()
    Trainer(replace(config, stop=Stop(skipped=3, steps=steps))).run()
    again = Trainer(config, resume=True)
    assert (again.take_step.skipped, again.take_step.in_a_row) == (steps - 2, steps - 2)
    with pytest.raises(NotFinite, match=r"step 5: .* 3 steps in a row") as resumed:
        again.run()
    assert str(resumed.value).partition(";")[0] == str(uninterrupted.value).partition(";")[0]


class Killed(BaseException):
    """As if the process had been killed here."""


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_killed_in_a_step_it_goes_on_from_the_last_checkpoint(
    options: TrainConfig, changed: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = Trainer(everything(options, changed, tmp_path / "whole"))
    whole.run()
    config = everything(options, changed, tmp_path / "killed")
    take = TrainStep.__call__

    def killed(self: TrainStep, number: int, *rest: Any) -> StepResult:
        if number == step:
            raise Killed
        return take(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", killed)
        trainer = Trainer(config)
        with pytest.raises(Killed):
            trainer.run()
        trainer.keeper.wait()
    again = Trainer(config, resume=True)
    assert again.reached.steps == step // 2 * 2
    again.run()
    assert differing(whole, again) == []
    assert losses(config) == losses(whole.config)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    options: TrainConfig, changed: Changed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Trainer(everything(options, changed, tmp_path / "whole"))
    whole.run()
    config = everything(options, changed, tmp_path / "damaged")
    Trainer(replace(config, stop=Stop(steps=4))).run()
    file = config.run.out / "checkpoints/step-4/optimizer-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    again = Trainer(config, resume=True)
    assert again.reached.steps == 2
    assert "optimizer-00001.safetensors" in caplog.text
    again.run()
    assert differing(whole, again) == []


def test_an_earlier_run_is_gone_on_with_only_when_asked(options: TrainConfig, changed: Changed) -> None:
    Trainer(replace(options, stop=Stop(steps=2))).run()
    with pytest.raises(UsageError, match=r"holds an earlier run .*--resume"):
        Trainer(options)
    with pytest.raises(UsageError, match=r"run\.seed was 0 when the run began, and is 5"):
        Trainer(changed(options, "run", seed=5), resume=True)
    with pytest.raises(UsageError, match=r"model\.hidden_size was 64"):
        Trainer(changed(options, "model", hidden_size=32), resume=True)
    assert tomllib.loads((options.run.out / "recipe.toml").read_text())["model"]["hidden_size"] == 64


def test_what_may_change_on_the_way_is_said(
    options: TrainConfig, changed: Changed, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    Trainer(replace(options, stop=Stop(steps=2))).run()
    trainer = Trainer(changed(options, "optim", lr=2e-2), resume=True)
    assert "optim.lr was 0.01, and is 0.02 from here on" in caplog.text
    assert trainer.reached.steps == 2


def test_ranges_to_skip_may_be_added_behind_the_place_of_a_run_alone(options: TrainConfig, changed: Changed) -> None:
    Trainer(replace(options, stop=Stop(steps=2))).run()
    with pytest.raises(UsageError, match=r"data\.skip has changed before sample 7"):
        Trainer(changed(options, "data", skip=("3-4",)), resume=True)
    trainer = Trainer(changed(options, "data", skip=("8-11",)), resume=True)
    assert trainer.samples.raw(trainer.reached.samples) == 12


def test_another_held_out_set_is_measured_and_not_the_one_before(
    options: TrainConfig, changed: Changed, corpus: Path
) -> None:
    Trainer(replace(options, stop=Stop(steps=2))).run()
    recipe = (options.run.out / "recipe.toml").read_bytes()
    other = changed(options, "data", valid=(f"valid={corpus / 'train-2.txt'}",), train=(str(corpus / "train-1.txt"),))
    other = changed(other, "data", train=options.data.train, valid=(f"valid={corpus / 'valid.txt'}", "b=README.md"))
    found = Trainer(other, measure=True).evaluate()
    assert found["b"] != found["valid"]
    assert (options.run.out / "recipe.toml").read_bytes() == recipe


def test_there_must_be_something_to_measure(options: TrainConfig) -> None:
    with pytest.raises(UsageError, match="no checkpoint to measure"):
        Trainer(options, measure=True)
    assert not options.run.out.exists()


def test_a_start_that_failed_leaves_nothing_to_the_next(options: TrainConfig, changed: Changed) -> None:
    with pytest.raises(UsageError):
        Trainer(changed(options, "model", seq_len=100_000))
    trainer = Trainer(changed(options, "model", vocab_size=300))
    assert trainer.text.words is not None
    assert trainer.text.words.tokenizer.get_vocab_size() == 300


def test_a_tokenizer_of_somebody_elses_is_not_taken_for_the_runs(options: TrainConfig) -> None:
    folder = options.run.out / "tokenizer"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("mine")
    with pytest.raises(UsageError, match="is not this run's"):
        Trainer(options)
    assert (folder / "tokenizer.json").read_text() == "mine"


def test_two_processes_do_not_train_in_one_folder(options: TrainConfig) -> None:
    trainer, said = Trainer(options), []

    def another() -> None:
        with pytest.raises(UsageError, match="another process is training there"):
            Trainer(options, resume=True).run()
        said.append(True)

    stopping(trainer, 3, another)
    trainer.run()
    assert said == [True]


@pytest.mark.parametrize("how", ["a byte", "another text"])
def test_tokens_that_have_changed_are_noticed(options: TrainConfig, changed: Changed, tmp_path: Path, how: str) -> None:
    from bloomery.data.tokenize import tokenize

    first = Trainer(replace(options, stop=Stop(steps=2)))
    first.run()
    (file,) = (options.run.out / "tokens").glob("train-0-*.bin")
    if how == "a byte":
        content = bytearray(file.read_bytes())
        content[100] ^= 1
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="a byte of it has changed"):
            Trainer(options, resume=True)
    else:
        for suffix in (".bin", ".idx", ".json"):
            file.with_suffix(suffix).unlink()
        text = tmp_path / "other.txt"
        text.write_text("the miller lost two geese. " * 900)
        assert first.text.words is not None
        tokenize([text], file.with_suffix(""), first.text.words.tokenizer, eod=2)
        with pytest.raises(UsageError, match="not what it held when the run began"):
            Trainer(options, resume=True)


def test_weights_of_another_tokenizer_are_not_taken_in_silence(
    options: TrainConfig, changed: Changed, tmp_path: Path, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Trainer(replace(options, stop=Stop(steps=2))).run()
    new = changed(changed(options, "run", out=tmp_path / "new"), "data", train=(str(corpus / "train-1.txt"),))
    new = changed(new, "model", vocab_size=320)
    with pytest.raises(UsageError, match="has another tokenizer than this run"):
        Trainer(replace(new, begin=Begin(path=options.run.out)))
    again = changed(new, "run", out=tmp_path / "again")
    Trainer(replace(again, begin=Begin(path=options.run.out, load="weights")))
    assert "its embeddings are of other tokens" in caplog.text


def test_resume_where_nothing_is_begins(options: TrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert Trainer(options, resume=True).run().reached.steps == 8
    assert "holds no run to go on with" in caplog.text


def test_a_finished_run_that_is_resumed_is_measured_and_written_again(options: TrainConfig) -> None:
    first = Trainer(options).run()
    again = Trainer(options, resume=True).run()
    assert again.reached == first.reached
    assert again.evaluation == first.evaluation


def test_a_run_that_is_resumed_can_be_made_longer(options: TrainConfig, changed: Changed) -> None:
    Trainer(options).run()
    assert Trainer(changed(options, "run", steps=11), resume=True).run().reached.steps == 11


def test_the_text_may_go_once_it_has_become_tokens(
    options: TrainConfig, changed: Changed, tmp_path: Path, corpus: Path
) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_bytes((corpus / "train-1.txt").read_bytes())
    config = changed(changed(options, "data", train=(str(copy),)), "model", vocab_size=270)
    first = Trainer(replace(config, stop=Stop(steps=2)))
    first.run()
    copy.write_text("something else " * 9000)
    again = Trainer(config, resume=True)
    assert again.text.train[0].ids.tolist() == first.text.train[0].ids.tolist()
    assert first.text.words is not None
    assert again.text.words is not None
    assert again.text.words.files == first.text.words.files


# --- beginning elsewhere ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", ["all", "weights", "weights+optimizer"])
def test_a_run_can_begin_from_anothers_checkpoint(
    options: TrainConfig, changed: Changed, tmp_path: Path, load: str
) -> None:
    other = Trainer(replace(options, stop=Stop(steps=4)))
    other.run()
    begin = Begin(path=options.run.out, load=load)  # type: ignore[arg-type]
    trainer = Trainer(replace(changed(options, "run", out=tmp_path / "new"), begin=begin))
    kept = weights(trainer)
    for name, tensor in weights(other).items():
        if load == "weights" and " of " in name:
            assert not kept[name].any()
        else:
            assert torch.equal(tensor, kept[name])
    assert trainer.reached == (other.reached if load == "all" else type(other.reached)())


def test_fine_tuning_begins_with_the_model_and_its_tokenizer(
    options: TrainConfig, learned: tuple[Trainer, TrainResult], corpus: Path
) -> None:
    from bloomery.train.recipe.run_options import ModelShape

    model = learned[1].model
    before = load_file(model / "model.safetensors")  # type: ignore[operator]
    trainer = Trainer(replace(options, model=ModelShape(start=str(model))))
    assert pooled(trainer.evaluate()).loss == pytest.approx(learned[1].evaluation["valid"].loss, rel=1e-5)
    result = trainer.run()
    assert result.model is not None
    assert (result.model / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()  # type: ignore[operator]
    after = load_file(model / "model.safetensors")  # type: ignore[operator]
    assert all(torch.equal(before[name], after[name]) for name in before)  # what it began with is as it was


@pytest.mark.parametrize("load", ["all", "weights", "weights+optimizer"])
def test_a_checkpoint_that_cannot_fit_is_refused_before_any_work(
    options: TrainConfig, changed: Changed, tmp_path: Path, load: str
) -> None:
    learned_positions = changed(options, "model", family="gpt2")
    Trainer(replace(learned_positions, stop=Stop(steps=1))).run()
    longer = changed(changed(learned_positions, "model", seq_len=64), "run", out=tmp_path / "new")
    for path in (options.run.out, options.run.out / "checkpoints/step-1"):
        with pytest.raises(CheckpointError, match=r"begin\.path .* is of a model with max_seq_len 48, not 64:"):
            Trainer(replace(longer, begin=Begin(path=path, load=load)))  # type: ignore[arg-type]
    for resume in (False, True):
        with pytest.raises(CheckpointError, match=r"begin\.path .* is not there"):
            Trainer(replace(longer, begin=Begin(path=tmp_path / "nowhere")), resume=resume)
    (options.run.out / "checkpoints/latest").unlink()
    (options.run.out / "checkpoints/latest").mkdir()
    with pytest.raises(CheckpointError, match="latest is a folder"):
        Trainer(replace(longer, begin=Begin(path=options.run.out, load=load)))  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_positions_that_are_computed_may_go_on_where_weights_are_taken(
    options: TrainConfig, changed: Changed, tmp_path: Path
) -> None:
    Trainer(replace(options, stop=Stop(steps=1))).run()
    longer = changed(changed(options, "model", seq_len=64), "run", out=tmp_path / "new")
    assert Trainer(replace(longer, begin=Begin(path=options.run.out, load="weights"))).run().reached.steps == 8
    with pytest.raises(CheckpointError, match="max_seq_len 48, not 64"):
        Trainer(replace(changed(longer, "run", out=tmp_path / "all"), begin=Begin(path=options.run.out)))


# --- stopping --------------------------------------------------------------------------------------------------------


def stopping(trainer: Trainer, step: int, act: Callable[[], object]) -> None:
    """Have something happen in a step."""
    take = trainer.take_step

    def acting(number: int, *rest: Any) -> StepResult:
        if number == step:
            act()
        return take(number, *rest)

    acting.skipped = acting.in_a_row = 0  # type: ignore[attr-defined]
    trainer.take_step = acting  # type: ignore[assignment]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    options: TrainConfig, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    trainer = Trainer(options)
    stopping(trainer, 2, lambda: os.kill(os.getpid(), number))
    result = trainer.run()
    assert (result.stopped, result.model, result.reached.steps) == (name, None, 3)
    assert "--resume" in caplog.text
    assert signal.getsignal(number) is before
    assert Trainer(options, resume=True).reached.steps == 3


def test_the_state_is_there_before_a_run_that_stops_is_measured(
    options: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sends SIGTERM gives seconds, and held-out text may take minutes."""
    there, evaluate = [], Trainer.evaluate

    def looking(trainer: Trainer) -> dict[str, Evaluation]:
        trainer.keeper.wait()
        there.append((trainer.keeper.folder / "step-2" / "manifest.json").is_file())
        return evaluate(trainer)

    monkeypatch.setattr(Trainer, "evaluate", looking)
    assert Trainer(replace(options, stop=Stop(steps=2))).run().stopped is not None
    assert there == [True]


def test_a_file_stops_the_run_once(options: TrainConfig) -> None:
    trainer = Trainer(options)
    stopping(trainer, 1, (options.run.out / "STOP").touch)
    assert "STOP was there" in str(trainer.run().stopped)
    assert not (options.run.out / "STOP").exists()
    assert Trainer(options, resume=True).run().stopped is None


def test_a_file_for_many_runs_stops_them_and_stays(options: TrainConfig, tmp_path: Path) -> None:
    config = replace(options, stop=Stop(file=tmp_path / "halt"))
    trainer = Trainer(config)
    stopping(trainer, 1, (tmp_path / "halt").touch)
    assert "halt is there" in str(trainer.run().stopped)
    with pytest.raises(UsageError, match="would end the run at once: remove it"):
        Trainer(config, resume=True)
    (tmp_path / "halt").unlink()
    assert Trainer(config, resume=True).run().stopped is None


STOPS = [
    (Stop(steps=3), 3, "stop.steps 3"),
    (Stop(tokens=3 * 4 * 48), 3, "stop.tokens"),
    (Stop(minutes=1e-9), 1, "stop.minutes"),
]


@pytest.mark.parametrize(("stop", "steps", "said"), STOPS, ids=[said for _, _, said in STOPS])
def test_a_run_stops_where_it_was_told(options: TrainConfig, stop: Stop, steps: int, said: str) -> None:
    result = Trainer(replace(options, stop=stop)).run()
    assert result.reached.steps == steps
    assert said in str(result.stopped)


def test_a_run_that_is_good_enough_is_done(options: TrainConfig, changed: Changed) -> None:
    easy = replace(changed(options, "run", eval_interval=2), stop=Stop(loss=100.0))
    result = Trainer(easy).run()
    assert result.reached.steps == 2
    assert result.stopped is None
    assert result.model is not None


def test_exit_codes_say_how_it_ended(options: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = options.run.out.parent / "recipe.toml"
    import tomli_w

    recipe.write_text(tomli_w.dumps(options.as_tables()))
    assert main(["train", str(recipe), "--stop.steps", "2"]) == 3
    assert main(["train", str(recipe)]) == 2
    assert main(["train", str(recipe), "--eval-only"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["set"], row["step"]) == ("valid", 2)
    assert main(["train", str(recipe), "--resume"]) == 0
    assert AutoModelForCausalLM.from_pretrained(options.run.out / "model")


def test_too_many_steps_that_are_not_finite_leave_their_batch(
    options: TrainConfig, changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(replace(options, stop=Stop(skipped=2)))
    with torch.no_grad():
        trainer.decoder.norm.weight.fill_(float("inf"))
    with pytest.raises(NotFinite, match=r"bad-batch\.safetensors"):
        trainer.run()
    batch = load_file(options.run.out / "bad-batch.safetensors")["ids"]
    assert torch.equal(batch, torch.from_numpy(trainer.samples.take(4, 4).ids))


def test_a_profile_is_recorded_of_the_steps_named(options: TrainConfig, changed: Changed) -> None:
    Trainer(changed(options, "run", profile=(2, 3))).run()
    trace = json.loads((options.run.out / "profile-2-3.json").read_text())
    assert any("aten::" in str(event.get("name")) for event in trace["traceEvents"])


def test_an_adapter_alone_is_learned_saved_and_taken_by_peft(
    options: TrainConfig, learned: tuple[Trainer, TrainResult], tmp_path: Path
) -> None:
    from peft import PeftModel

    from bloomery.train.recipe.lora_options import LoraOptions
    from bloomery.train.recipe.run_options import ModelShape

    model = learned[1].model
    assert model is not None
    config = replace(options, model=ModelShape(start=str(model)), lora=LoraOptions(rank=4, dropout=0.1))
    whole = Trainer(replace(config, run=replace(config.run, out=tmp_path / "whole")))
    result = whole.run()
    assert result.model == tmp_path / "whole/adapter"
    Trainer(replace(config, stop=Stop(steps=3))).run()
    again = Trainer(config, resume=True)
    again.run()
    assert differing(whole, again) == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of what peft asks transformers
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), result.model)
    ids = torch.arange(5, 25)
    positions, attend = whole.loss._for_shape(1, len(ids))
    with torch.no_grad():
        ours = whole.decoder.eval().logits(whole.decoder(ids, positions, attend))
        expected = theirs(ids[None]).logits[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * max(1, expected.abs().max().item()))


def test_a_blend_and_skips_reach_the_samples(options: TrainConfig, changed: Changed) -> None:
    train = (options.data.train[0].replace("*", "1"), options.data.train[0].replace("*", "2"))
    trainer = Trainer(changed(options, "data", train=train, weights=(3.0, 1.0), skip=("2-9",)))
    sources = [trainer.samples.place(index)[0].name for index in range(40)]
    assert sum("train-0" in name for name in sources) in (29, 30, 31)
    assert trainer.samples.raw(2) == 10
