"""Checkpoints of a run: they bring back every bit, or the one before does, and nothing half-written is believed."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from bloomery import LLM
from bloomery.checkpoint.checks import check_hashes, check_numbers, check_structure
from bloomery.checkpoint.folder import read_folder
from bloomery.cli import main
from bloomery.disk.lock import only_writer
from bloomery.errors import CheckpointError, UsageError
from bloomery.families import FAMILIES
from bloomery.model.layout import shapes
from bloomery.train.recipe.pace_options import Optim
from bloomery.train.state import checkpoint as module
from bloomery.train.state import tensor_files
from bloomery.train.state.checkpoint import Checkpoints, Progress
from bloomery.train.state.tensor_files import kinds_of, read_tensors
from runs import FAMILY, Run, checkpoints_of, config_of, differences, saved

ASSETS = Path(module.__file__).parents[2] / "assets" / "dickens"


def names_in(folder: Path) -> set[str]:
    inside = folder / "checkpoints"  # made by the thread that writes
    return {file.name for file in inside.iterdir()} - {".lock"} if inside.exists() else set()


def loaded(folder: Path, path: Path | None = None, what: Any = "all", **changes: Any) -> Run:
    """A new process's run, of other numbers, after loading."""
    run = Run(seed=9, **changes)
    run.progress = checkpoints_of(run, folder).load(path, run.decoder, run.optimizer, what=what)
    return run


def flip(file: Path, place: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_that_was_interrupted_is_the_same_to_the_last_bit(tmp_path: Path, optimizer: str) -> None:
    first = Run(optimizer=optimizer)
    saved(first, tmp_path, 3)
    second = loaded(tmp_path, optimizer=optimizer)
    assert second.progress == first.progress
    assert not differences(first.tensors(), second.tensors())
    assert not differences(first.go(6).tensors(), second.go(6).tensors())


def test_saved_tensors_are_those_of_torch_by_canonical_names(tmp_path: Path) -> None:
    run = Run(optimizer="muon")
    saved(run, tmp_path, 2)
    step = tmp_path / "checkpoints" / "step-2"
    tensors = {name: t for file in step.glob("*.safetensors") for name, t in load_file(file).items()}
    expected = dict(run.decoder.named_parameters())
    names = {parameter: name for name, parameter in expected.items()}
    adamw, muon = run.optimizer.parts
    for parameter, kept in adamw.state.items():
        expected |= {f"optim.{key}.{names[parameter]}": kept[key] for key in ("exp_avg", "exp_avg_sq")}
        expected[f"optim.step.{names[parameter]}"] = torch.tensor([2.0])
    for parameter, kept in muon.state.items():
        expected[f"optim.momentum_buffer.{names[parameter]}"] = kept["momentum_buffer"]
    assert len(list(step.glob("weights-*"))) > 1  # several files
    assert len(list(step.glob("optimizer-*"))) > 1
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_step_folder_holds_json_and_safetensors_only_and_a_hash_of_each(tmp_path: Path) -> None:
    saved(Run(), tmp_path, 1, beside={"tokenizer.json": b"{}"})
    step = tmp_path / "checkpoints" / "step-1"
    said = json.loads((step / "manifest.json").read_text())
    files = {file.name: file.read_bytes() for file in step.iterdir()}
    assert {Path(name).suffix for name in files} == {".json", ".safetensors"}
    assert {"config.json", "tokenizer.json", "state.json"} < set(files)
    assert set(said["files"]) | {"manifest.json"} == set(files)
    for name, facts in said["files"].items():
        assert facts == {"size": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
    assert not any(content[:2] in (b"\x80\x02", b"\x80\x04", b"PK") for content in files.values())  # pickle, zip
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-1\n"


def test_progress_comes_back_with_everything_extra(tmp_path: Path) -> None:
    run = Run().go(2)
    run.progress.extra = {"best": 0.1 + 0.2, "names": ["a", "é"], "none": None}
    checkpoints = checkpoints_of(run, tmp_path)
    checkpoints.save(run.decoder, run.optimizer, run.progress)
    checkpoints.wait()
    assert loaded(tmp_path).progress == run.progress


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written until it is set."""
    gate, write = threading.Event(), module.write_tensors

    def waiting(*arguments: Any) -> None:
        assert gate.wait(60)
        write(*arguments)

    monkeypatch.setattr(module, "write_tensors", waiting)
    return gate


def test_weights_that_change_right_after_save_are_saved_as_they_were(tmp_path: Path, held: threading.Event) -> None:
    run = Run().go(2)
    checkpoints, before = checkpoints_of(run, tmp_path), run.tensors()
    checkpoints.save(run.decoder, run.optimizer, run.progress)
    assert not names_in(tmp_path) & {"step-2", "latest"}  # it has returned before anything is written
    run.go(4)
    with torch.no_grad():
        for parameter in run.decoder.parameters():
            parameter.zero_()
    held.set()
    checkpoints.wait()
    assert not differences(loaded(tmp_path).tensors(), before)


def test_saves_follow_one_another(tmp_path: Path) -> None:
    run = Run()
    checkpoints = checkpoints_of(run, tmp_path, keep=10)
    for step in range(1, 6):
        checkpoints.save(run.go(step).decoder, run.optimizer, run.progress)
    checkpoints.wait()
    assert names_in(tmp_path) == {*(f"step-{step}" for step in range(1, 6)), "latest"}
    assert checkpoints.newest() == tmp_path / "checkpoints" / "step-5"


@pytest.mark.parametrize("ask", ["wait", "save"])
def test_an_error_while_writing_is_raised_when_next_asked_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str], ask: str
) -> None:
    run = Run()
    checkpoints = saved(run, tmp_path, 1)
    before = run.go(2).tensors()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_json", full)
    checkpoints.save(run.decoder, run.optimizer, run.progress)
    with pytest.raises(CheckpointError, match=r"step-2 cannot be written.*No space left.*make room") as error:
        checkpoints.wait() if ask == "wait" else checkpoints.save(run.decoder, run.optimizer, run.progress)
    assert "\n" not in str(error.value)
    assert any("step 2 is not written" in line for line in log)
    assert names_in(tmp_path) == {"step-1", "latest"}
    assert not differences(before, run.tensors())
    monkeypatch.undo()
    checkpoints.wait()
    checkpoints.save(run.decoder, run.optimizer, run.progress)
    checkpoints.wait()
    assert not differences(loaded(tmp_path).tensors(), before)


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run()
    checkpoints = saved(run, tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    checkpoints.save(run.go(2).decoder, run.optimizer, run.progress)
    with pytest.raises(CheckpointError, match="100 B free: make room"):
        checkpoints.wait()
    assert names_in(tmp_path) == {"step-1", "latest"}


def test_a_disk_that_keeps_something_else_than_it_was_given_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run()
    saved(run, tmp_path, 1)
    write = module.write_tensors

    def lying(folder: Path, files: Any) -> None:
        write(folder, files)
        flip(next(folder.glob("optimizer-*")))

    monkeypatch.setattr(module, "write_tensors", lying)
    with pytest.raises(CheckpointError, match="not read back as it was written"):
        saved(run, tmp_path, 2)
    assert names_in(tmp_path) == {"step-1", "latest"}


def test_the_newest_are_kept(tmp_path: Path) -> None:
    saved(Run(), tmp_path, 1, 2, 5, 30, keep=2)
    assert names_in(tmp_path) == {"step-5", "step-30", "latest"}


def test_a_run_that_goes_back_keeps_its_new_past(tmp_path: Path, log: list[str]) -> None:
    saved(Run(), tmp_path, 2, 4, 6, keep=3)
    (tmp_path / "checkpoints" / "latest").write_text("step-2\n")
    run = loaded(tmp_path)
    assert run.progress.step == 2
    saved(run, tmp_path, 3, keep=1)
    assert names_in(tmp_path) == {"step-3", "latest"}
    assert any("step-6 is removed: it is later than step 3" in line for line in log)
    assert loaded(tmp_path).progress.step == 3


def test_a_step_may_be_saved_again(tmp_path: Path) -> None:
    saved(Run(), tmp_path, 3)
    again = Run(seed=5)
    saved(again, tmp_path, 3)
    assert names_in(tmp_path) == {"step-3", "latest"}
    assert not differences(loaded(tmp_path).tensors(), again.tensors())


FILES = ["weights-000-00001.safetensors", "optimizer-00002.safetensors", "config.json", "state.json", "manifest.json"]
DAMAGES: dict[str, Callable[[Path], None]] = {
    "a flipped byte": lambda file: flip(file, len(file.read_bytes()) // 2),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "empty": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_checkpoint_the_one_before_is_used_and_stderr_says_why(
    tmp_path: Path, log: list[str], name: str, damage: str
) -> None:
    saved(Run(), tmp_path, 2, 4)
    file = tmp_path / "checkpoints" / "step-4" / name
    DAMAGES[damage](file)
    if (name, damage) == ("manifest.json", "a flipped byte"):  # in the middle of its hashes, whatever byte that is
        text = json.loads((file.parent.parent / "step-2" / name).read_text())
        text["files"]["state.json"]["sha256"] = "0" * 64
        file.write_text(json.dumps(text))
    run = loaded(tmp_path)
    assert run.progress.step == 2
    assert not differences(run.tensors(), Run().go(2).tensors())
    why = [line for line in log if "this checkpoint is not used" in line]
    assert len(why) == 1
    assert str(file.parent) in why[0]
    assert any(line.startswith("using ") and "step-2 instead" in line for line in log)
    assert checkpoints_of(run, tmp_path).newest() == tmp_path / "checkpoints" / "step-2"


def test_a_half_published_folder_is_not_used(tmp_path: Path, log: list[str]) -> None:
    saved(Run(), tmp_path, 2, 4)
    (tmp_path / "checkpoints" / "step-4").rename(tmp_path / "checkpoints" / "step-4.tmp")
    assert loaded(tmp_path).progress.step == 2
    assert any("latest names step-4, which is not there" in line for line in log)


def test_one_that_was_finished_and_never_named_is_better_than_none(tmp_path: Path) -> None:
    saved(Run(), tmp_path, 2, 4)
    (tmp_path / "checkpoints" / "latest").write_text("step-2\n")
    assert loaded(tmp_path).progress.step == 2
    flip(next((tmp_path / "checkpoints" / "step-2").glob("weights-*")))
    assert loaded(tmp_path).progress.step == 4


def test_a_damaged_one_does_not_count_as_kept(tmp_path: Path, log: list[str]) -> None:
    run = Run()
    saved(run, tmp_path, 2, 4)
    flip(next((tmp_path / "checkpoints" / "step-4").glob("weights-*")))
    checkpoints = checkpoints_of(run, tmp_path)
    run.progress = checkpoints.load(None, run.decoder, run.optimizer, what="all")
    checkpoints.save(run.go(5).decoder, run.optimizer, run.progress)
    checkpoints.wait()
    assert names_in(tmp_path) == {"step-2", "step-5", "latest"}
    assert any("step-4 is removed: it is damaged" in line for line in log)


@pytest.mark.parametrize("text", [None, "", "step-", "../../step-2", "step-2\nstep-4", "\xff" * 200])
def test_where_latest_is_lost_or_damaged_the_newest_is_taken(tmp_path: Path, text: str | None) -> None:
    saved(Run(), tmp_path, 2, 4)
    latest = tmp_path / "checkpoints" / "latest"
    latest.unlink() if text is None else latest.write_text(text, encoding="latin-1")
    assert loaded(tmp_path).progress.step == 4


def test_a_folder_in_the_place_of_latest_is_refused_in_one_line(tmp_path: Path) -> None:
    """As a copy leaves it that follows links."""
    run = Run()
    saved(run, tmp_path, 2, 4)
    latest = tmp_path / "checkpoints" / "latest"
    latest.unlink()
    shutil.copytree(latest.with_name("step-4"), latest)
    for act in (lambda: loaded(tmp_path), lambda: read_folder(tmp_path), lambda: read_folder(latest.parent)):
        with pytest.raises(CheckpointError, match=r"latest is a folder, .* move it away") as caught:
            act()
        assert "\n" not in str(caught.value)
    found = loaded(tmp_path / "another", path=latest)  # but it can be named as what it is
    assert found.progress.step == 4
    assert not differences(found.tensors(), run.tensors())
    latest.rename(tmp_path / "away")
    assert loaded(tmp_path).progress.step == 4


def test_a_link_in_the_place_of_latest_gives_way_to_the_next_checkpoint(tmp_path: Path, log: list[str]) -> None:
    run = Run()
    saved(run, tmp_path, 2, 4)
    latest = tmp_path / "checkpoints" / "latest"
    latest.unlink()
    latest.symlink_to("step-2")
    assert loaded(tmp_path).progress.step == 4
    assert any("taking the newest" in line for line in log)
    saved(run, tmp_path, 5)
    assert latest.read_text() == "step-5\n"


def test_a_checkpoint_from_before_steps_in_a_row_were_counted_has_none(tmp_path: Path) -> None:
    run = Run().go(2)
    run.progress.skipped = run.progress.skipped_in_a_row = 3
    checkpoints = checkpoints_of(run, tmp_path)
    checkpoints.save(run.decoder, run.optimizer, run.progress)
    checkpoints.wait()
    assert loaded(tmp_path).progress.skipped_in_a_row == 3
    step = tmp_path / "checkpoints" / "step-2"
    state, said = json.loads((step / "state.json").read_text()), json.loads((step / "manifest.json").read_text())
    del state["progress"]["skipped_in_a_row"]
    content = json.dumps(state).encode()
    (step / "state.json").write_bytes(content)
    said["files"]["state.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (step / "manifest.json").write_text(json.dumps(said))
    progress = loaded(tmp_path).progress
    assert (progress.skipped, progress.skipped_in_a_row) == (3, 0)


def test_without_a_good_checkpoint_loading_fails_in_one_line(tmp_path: Path) -> None:
    run = Run()
    checkpoints = checkpoints_of(run, tmp_path)
    assert checkpoints.newest() is None
    with pytest.raises(CheckpointError, match="has no checkpoint: name a run"):
        checkpoints.load(None, run.decoder, run.optimizer, what="all")
    saved(run, tmp_path, 1, 2)
    for step in (1, 2):
        flip(next((tmp_path / "checkpoints" / f"step-{step}").glob("optimizer-*")))
    before = run.tensors()
    with pytest.raises(CheckpointError, match=r"no checkpoint that is whole .*step-2.*has changed") as error:
        checkpoints.load(None, run.decoder, run.optimizer, what="all")
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="no checkpoint that is whole"):
        checkpoints.newest()
    assert not differences(before, run.tensors())


def test_a_step_folder_that_is_named_is_not_replaced_by_another(tmp_path: Path) -> None:
    saved(Run(), tmp_path, 2, 4)
    step = tmp_path / "checkpoints" / "step-4"
    assert loaded(tmp_path / "other", step.parent / "step-2").progress.step == 2
    flip(next(step.glob("weights-*")))
    with pytest.raises(CheckpointError, match="has changed since it was written"):
        loaded(tmp_path, step)


def test_another_run_may_be_named_by_its_folder(tmp_path: Path) -> None:
    saved(Run(), tmp_path / "old", 2, 4)
    for path in (tmp_path / "old", tmp_path / "old" / "checkpoints"):
        assert loaded(tmp_path / "new", path).progress.step == 4


def test_a_file_that_the_manifest_does_not_name_is_refused(tmp_path: Path) -> None:
    saved(Run(), tmp_path, 2, 4)
    step = tmp_path / "checkpoints" / "step-4"
    shutil.copy(next(step.glob("weights-*")), step / "more.safetensors")
    with pytest.raises(CheckpointError, match=r"more.safetensors is none of the checkpoint's files"):
        loaded(tmp_path, step)


def test_weights_alone_begin_at_step_0_with_the_optimizer_untouched(tmp_path: Path) -> None:
    saved(Run(), tmp_path, 3)
    run, fresh = loaded(tmp_path, what="weights"), Run(seed=9)
    assert run.progress == Progress()
    trained = dict(Run().go(3).decoder.named_parameters())
    assert all(torch.equal(tensor, trained[name]) for name, tensor in run.decoder.named_parameters())
    state = fresh.optimizer.state()
    assert all(
        torch.equal(t, state[name][key]) for name, kept in run.optimizer.state().items() for key, t in kept.items()
    )


def test_weights_and_optimizer_begin_at_step_0(tmp_path: Path) -> None:
    saved(Run(), tmp_path, 3)
    run = loaded(tmp_path, what="weights+optimizer")
    assert run.progress == Progress()
    assert not differences(run.tensors(), Run().go(3).tensors())


@pytest.mark.parametrize(
    ("changes", "what", "wrong"),
    [
        ({"ffn_size": 64, "vocab_size": 51}, "all", "model with vocab_size 50, unlike"),
        ({"vocab_size": 51}, "weights", r"'embed.tokens.weight' is \[50, 16\], not \[51, 16\]"),
        ({"num_layers": 3}, "weights", "lacks tensor 'blocks.2"),
        ({"num_layers": 1}, "weights", "has tensor 'blocks.1.*which this run has not"),
        ({"optimizer": "muon"}, "all", "lacks tensor 'optim.momentum_buffer.blocks.0"),
    ],
)
def test_another_model_or_optimizer_is_refused_by_name_before_anything_changes(
    tmp_path: Path, changes: dict[str, Any], what: Any, wrong: str
) -> None:
    saved(Run(), tmp_path, 2)
    run = Run(seed=9, **changes)
    before = run.tensors()
    with pytest.raises(CheckpointError, match=wrong):
        checkpoints_of(run, tmp_path).load(None, run.decoder, run.optimizer, what=what)
    assert not differences(before, run.tensors())


def test_surplus_optimizer_tensors_and_other_dtypes_are_refused_by_name(tmp_path: Path) -> None:
    saved(Run(optimizer="muon"), tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"lacks tensor 'optim.step.blocks"):
        loaded(tmp_path)
    half = Run()
    half.decoder.to(torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"'embed.tokens.weight' is float32, not bfloat16"):
        checkpoints_of(half, tmp_path).load(None, half.decoder, None, what="weights")


def test_a_change_that_weights_do_not_show_is_refused_to_go_on_and_said_to_begin(
    tmp_path: Path, log: list[str]
) -> None:
    saved(Run(), tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"model with norm_eps 1e-05, unlike this run's"):
        loaded(tmp_path, norm_eps=0.5)
    loaded(tmp_path, what="weights", norm_eps=0.5)
    assert any("norm_eps 1e-05, unlike this run's: its weights are taken" in line for line in log)


def test_a_config_json_of_another_model_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    text = json.dumps(FAMILY.from_config(config_of(vocab_size=51))).encode()
    with pytest.raises(ValueError, match="not of a bloom"):
        Checkpoints(tmp_path, keep=1, beside={"config.json": text}, family=FAMILY, config=config_of())


def test_two_runs_cannot_save_into_one_folder(tmp_path: Path) -> None:
    run = Run()
    checkpoints = saved(run, tmp_path, 1)
    with only_writer(tmp_path / "checkpoints" / ".lock", lambda: None):
        checkpoints.save(run.go(2).decoder, run.optimizer, run.progress)
        with pytest.raises(UsageError, match="another process is saving"):
            checkpoints.wait()
    assert names_in(tmp_path) == {"step-1", "latest"}


class Adapted(nn.Module):
    """A frozen matrix with something trained beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.lora_a = nn.Parameter(torch.ones(2, base.in_features))


def test_what_is_trained_beside_a_frozen_model_is_saved_alone_and_is_no_model(tmp_path: Path) -> None:
    def adapted(seed: int) -> Run:
        run = Run(seed)
        run.decoder.requires_grad_(False)
        run.decoder.blocks[0].attn.out = Adapted(run.decoder.blocks[0].attn.out)  # type: ignore[assignment]
        run.optimizer = type(run.optimizer)(run.decoder.named_parameters(), Optim(lr=1e-2))
        return run

    first = adapted(0)
    saved(first, tmp_path, 3)
    step = tmp_path / "checkpoints" / "step-3"
    assert set(kinds_of(step)) == {
        "blocks.0.attn.out.lora_a",
        *(f"optim.{key}.blocks.0.attn.out.lora_a" for key in ("step", "exp_avg", "exp_avg_sq")),
    }
    second = adapted(0)
    second.progress = checkpoints_of(second, tmp_path).load(None, second.decoder, second.optimizer, what="all")
    assert not differences(first.go(5).tensors(), second.go(5).tensors())
    with pytest.raises(CheckpointError, match="trained beside a model"):
        read_folder(step)
    with pytest.raises(CheckpointError, match="has what is trained beside a frozen model, and this run is of a whole"):
        loaded(tmp_path)


def test_files_that_several_ranks_wrote_are_read_as_one(tmp_path: Path) -> None:
    whole, vector = torch.randn(7, 4), torch.randn(5)
    parts = {"rank-0": (whole[:4], [0, 0]), "rank-1": (whole[4:], [4, 0])}
    for name, (part, offsets) in parts.items():
        tensors, places = {"w": part.contiguous()}, {"w": {"saved_offsets": offsets}}
        if name == "rank-1":
            tensors["v"], places["v"] = vector, {"saved_offsets": [0]}
        save_file(tensors, tmp_path / f"{name}.safetensors", {"DCP_SHARDING_INFO": json.dumps(places)})
    assert kinds_of(tmp_path) == {"w": (torch.float32, (7, 4)), "v": (torch.float32, (5,))}
    found = {"w": torch.zeros(7, 4), "v": torch.zeros(5)}
    read_tensors(tmp_path, found)
    assert torch.equal(found["w"], whole)
    assert torch.equal(found["v"], vector)


# --- as a model ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a tokenizer, and two checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    vocab = json.loads((ASSETS / "config.json").read_text())["vocab_size"]
    beside = {name: (ASSETS / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    saved(Run(vocab_size=vocab, max_seq_len=128), folder, 1, 2, beside=beside, file_bytes=100_000)
    return folder


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/step-2"])
def test_a_checkpoint_and_a_run_are_models_to_llm(trained: Path, tmp_path: Path, place: str) -> None:
    llm = LLM(trained / place)
    assert llm.folder.path == trained / "checkpoints" / "step-2"
    assert llm.encode("It was") == LLM("dickens").encode("It was")
    assert main(["export", str(trained / place), str(tmp_path / "hf")]) == 0
    ids = [5, 77, 900, 3, 12]
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")(torch.tensor([ids])).logits[0]
    ours = llm.logits(ids)
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max()))


def test_a_checkpoint_is_converted_and_its_optimizer_stays_behind(trained: Path, tmp_path: Path) -> None:
    assert main(["convert", str(trained), str(tmp_path / "store")]) == 0
    names = {file.name for file in (tmp_path / "store").iterdir()}
    assert not any(name.startswith(("optimizer", "state")) for name in names)
    assert {"tokenizer.json", "config.json", "manifest.json"} < names
    store = {n: t for file in (tmp_path / "store").glob("*.safetensors") for n, t in load_file(file).items()}
    kept = {n: t for f in trained.glob("checkpoints/step-2/weights-*") for n, t in load_file(f).items()}
    assert set(kept) == set(shapes(read_folder(trained).config))
    assert all(torch.equal(store[name], tensor) for name, tensor in kept.items())


def test_verify_reads_a_checkpoint_and_its_hashes(trained: Path, tmp_path: Path) -> None:
    folder = check_structure(trained)
    assert folder.check.passed
    assert folder.folder is not None
    assert folder.tensors is not None
    assert [check.passed for check in check_hashes(folder.folder)] == [True]
    assert [check.passed for check in check_numbers(folder.folder, folder.tensors)] == [True]
    assert main(["verify", str(trained), "--hashes", "--files-only"]) == 0
    broken = Path(shutil.copytree(trained, tmp_path / "run"))
    flip(next((broken / "checkpoints" / "step-2").glob("optimizer-*")))
    assert main(["verify", str(broken), "--hashes", "--files-only"]) == 1


def test_info_says_which_run_and_step_a_checkpoint_is_of(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(trained / "checkpoints" / "step-1"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["model"]
    assert facts["made from"] == f"training run {trained.name}, step 1"
    assert facts["by dtype (bytes)"].keys() == {"float32"}


def test_a_latest_that_names_nothing_is_said_in_one_line(trained: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(trained, tmp_path / "run"))
    (broken / "checkpoints" / "latest").write_text("step-7\n")
    with pytest.raises(CheckpointError, match="latest names step-7, which is not there"):
        read_folder(broken)
    (broken / "checkpoints" / "latest").write_text("../../secret\n")
    with pytest.raises(CheckpointError, match="which is no step folder"):
        read_folder(broken)


def test_other_families_are_saved_as_models_too(tmp_path: Path) -> None:
    family = FAMILIES["mixtral"]
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    asked = replace(config_of(), **sizes, ffn_size=32, num_experts=3, experts_per_token=2, embed_norm=False)
    config = family.to_config(family.from_config(asked))
    run = Run()
    run.decoder = type(run.decoder)(config)
    run.optimizer = type(run.optimizer)(run.decoder.named_parameters(), Optim(lr=1e-2))
    beside = {"config.json": json.dumps(family.from_config(config)).encode()}
    checkpoints = Checkpoints(tmp_path, keep=1, beside=beside, family=family, config=config)
    checkpoints.save(run.go(2).decoder, run.optimizer, run.progress)
    checkpoints.wait()
    before = run.tensors()
    assert read_folder(tmp_path).family.name == "mixtral"
    run.go(3)
    checkpoints.load(None, run.decoder, run.optimizer, what="all")
    assert not differences(before, run.tensors())


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["calls", "bytes", "full"])
def test_killed_anywhere_a_run_goes_on_from_the_last_whole_checkpoint(tmp_path: Path, kind: str) -> None:
    script = Path(__file__).parent / "killing.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), kind],
        capture_output=True,
        text=True,
        timeout=280,
        env={"PYTHONPATH": str(script.parents[2]), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    if kind == "calls":
        assert found["3"] > 15
        assert found["5"] > 2  # killed while the old one is being removed
    else:
        assert set(found) == {"3" if kind == "bytes" else "5"}


def test_the_writer_is_given_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's writer loses what goes wrong in a second one, and would publish what is not there."""
    made: list[int] = []
    real = tensor_files.HuggingFaceStorageWriter

    def counting(*arguments: Any, **options: Any) -> Any:
        made.append(options["thread_count"])
        return real(*arguments, **options)

    monkeypatch.setattr(tensor_files, "HuggingFaceStorageWriter", counting)
    saved(Run(), tmp_path, 1)
    assert made == [1]
