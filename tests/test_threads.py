"""A process computes on the threads that it is told, else on as many as it has cores, and time of them."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bloomery import LLM, SamplingParams, UsageError, devices
from bloomery.cli import main
from bloomery.devices import Threads, _groups, _quotas, cpu_quota, physical_cores, pick_threads, set_threads
from bloomery.ops import native


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Eight processors, none of them shared, no control group, and nobody who says how many threads; the folder of
    control groups."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "_processors", lambda: list(range(8)))
    monkeypatch.setattr(devices, "physical_cores", lambda: 8)
    monkeypatch.setattr(devices, "_groups", lambda _: [(tmp_path, "/a/b", 2), (tmp_path / "cpu", "/c", 1)])
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "cpu" / "c").mkdir(parents=True)
    return tmp_path


# ---- what a process may run on ----


def test_a_core_that_two_processors_share_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3, 5})
    for number, siblings in enumerate(["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"]):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert physical_cores(tmp_path) == 4  # processors 1 and 5 are one core
    assert physical_cores(tmp_path / "nowhere") == 5


def test_cores_that_a_process_is_kept_from_do_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    assert physical_cores(tmp_path) == 1


@pytest.mark.parametrize(
    ("said", "quotas"),
    [("150000 100000", [1.5]), ("max 100000", []), ("50000 100000", [0.5]), ("", []), ("many", []), ("1 0", [])],
)
def test_a_quota_is_time_in_a_period(tmp_path: Path, said: str, quotas: list[float]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cpu.max").write_text(said + "\n")
    assert list(_quotas(tmp_path, "/a")) == quotas


@pytest.mark.parametrize(("quota", "quotas"), [("250000", [2.5]), ("-1", []), ("0", [])])
def test_a_quota_of_the_older_groups(tmp_path: Path, quota: str, quotas: list[float]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "a" / "cpu.cfs_period_us").write_text("100000\n")
    assert list(_quotas(tmp_path, "/a")) == quotas


def test_groups_that_a_group_is_in_count_as_well(tmp_path: Path) -> None:
    for folder, said in ((tmp_path / "a" / "b", "400000 100000"), (tmp_path / "a", "150000 100000")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(said)
    (tmp_path / "cpu.max").write_text("max 100000")
    assert sorted(_quotas(tmp_path, "/a/b")) == [1.5, 4]
    assert list(_quotas(tmp_path, "/elsewhere")) == []


def test_groups_are_found_in_either_version(tmp_path: Path) -> None:
    listed = tmp_path / "cgroup"
    listed.write_text("5:memory:/m\n4:cpu,cpuacct:/docker/x\n3:cpuset:/s\n0::/user.slice\n")
    root = devices.GROUPS
    assert list(_groups("cpu", listed)) == [(root / "cpu", "/docker/x", 1), (root, "/user.slice", 2)]
    assert list(_groups("memory", listed)) == [(root / "memory", "/m", 1), (root, "/user.slice", 2)]
    assert list(_groups("cpu", tmp_path / "nowhere")) == []


# ---- who says how many ----


@pytest.mark.parametrize(
    ("quota", "count", "source"),
    [
        ("800000", 8, "physical cores"),
        ("710000", 8, "physical cores"),
        ("700000", 7, "a CPU quota of 7"),
        ("150000", 2, "a CPU quota of 1.5"),
        ("100000", 1, "a CPU quota of 1"),
        ("10000", 1, "a CPU quota of 0.1"),
        ("max", 8, "physical cores"),
    ],
)
def test_unset_is_the_cores_or_the_quota_rounded_up(eight_cores: Path, quota: str, count: int, source: str) -> None:
    (eight_cores / "a" / "cpu.max").write_text(f"{quota} 100000")
    assert pick_threads() == Threads(count, source)


def test_the_least_quota_counts(eight_cores: Path) -> None:
    (eight_cores / "a" / "b" / "cpu.max").write_text("300000 100000")
    (eight_cores / "cpu" / "c" / "cpu.cfs_quota_us").write_text("190000")
    (eight_cores / "cpu" / "c" / "cpu.cfs_period_us").write_text("100000")
    assert cpu_quota() == 1.9
    assert pick_threads() == Threads(2, "a CPU quota of 1.9")


@pytest.mark.parametrize(("said", "count"), [("3", 3), (" 6,2 ", 6), ("11", 11)])
def test_what_the_user_says_wins(eight_cores: Path, monkeypatch: pytest.MonkeyPatch, said: str, count: int) -> None:
    (eight_cores / "cpu.max").write_text("100000 100000")
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert pick_threads() == Threads(count, "OMP_NUM_THREADS")
    assert pick_threads(5) == Threads(5, "asked for")


def test_an_empty_variable_says_nothing(eight_cores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert pick_threads().count == 8


@pytest.mark.parametrize("said", ["two", "0", "-1", "1.5", "5000", ",2", "2x,3"])
def test_a_variable_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    with pytest.raises(
        UsageError, match=r"^OMP_NUM_THREADS is .*: give a whole number from 1 to 1024, or leave it out$"
    ):
        pick_threads()
    assert pick_threads(2).count == 2  # nobody asks for it


@pytest.mark.parametrize("asked", [0, -1, 1025, 2**40, 1.5, True, "two"])
def test_a_number_that_no_process_can_have_is_refused(asked) -> None:
    for ask in (set_threads, lambda threads: LLM(threads=threads)):
        with pytest.raises(UsageError, match=r"^threads is .*: give a whole number from 1 to 1024, or leave it out$"):
            ask(asked)


def test_more_than_there_are_processors_is_warned_of(eight_cores: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        set_threads(8)
        assert not caplog.messages
        set_threads(9)
    (said,) = caplog.messages
    assert said.startswith("9 threads (asked for) share the 8 processors that this process may run on")
    assert torch.get_num_threads() == 9


# ---- from end to end ----


def test_tokens_are_the_same_on_any_number_of_threads() -> None:
    def text(threads: int) -> tuple[int, ...]:
        llm = LLM("dickens", threads=threads)
        assert torch.get_num_threads() == threads
        (done,) = llm.generate("It was the best of times", SamplingParams(max_new_tokens=24))
        return tuple(done.token_ids)

    assert len({text(threads) for threads in (1, 2, 3)}) == 1


def test_without_a_number_a_model_leaves_pytorchs_alone() -> None:
    torch.set_num_threads(2)
    LLM("dickens")
    assert torch.get_num_threads() == 2


RUN = """
import json, os, sys
from bloomery.cli import main
from bloomery.ops.native.calls import WRITTEN, Written, call, thread_count
written = Written([], lambda tensor: None)
WRITTEN.set(written)
code = main(sys.argv[1:])
import torch
kernels = sorted({int.from_bytes(fields[-8:], "little") for _, fields in written.calls})
print(json.dumps({"torch": torch.get_num_threads(), "kernels": kernels}))
raise SystemExit(code)
"""


def process(script: str, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    others = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", script, *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=others | environment)


@pytest.mark.parametrize(
    ("argv", "environment", "count"),
    [
        (("--threads", "3"), {"OMP_NUM_THREADS": "2"}, 3),
        (("--threads", "1"), {"BLOOMERY_THREADS": "2"}, 1),
        ((), {"OMP_NUM_THREADS": "3"}, 3),
        ((), {"BLOOMERY_THREADS": "2", "OMP_NUM_THREADS": "3"}, 2),
        ((), {}, None),
    ],
    ids=["option", "option over ours", "OMP", "ours over OMP", "unset"],
)
def test_a_verb_computes_on_as_many(
    argv: tuple[str, ...], environment: dict[str, str], count: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = process(RUN, "generate", "It was", "--max-new-tokens", "3", *argv, **environment)
    assert done.returncode == 0, done.stderr
    monkeypatch.delenv("OMP_NUM_THREADS")
    count = count or pick_threads().count
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"torch": count, "kernels": [count] if native.library() else []}


TEAM = """
import os, sys, torch
from bloomery.devices import set_threads
from bloomery.ops.linear import linear
set_threads(int(sys.argv[1]))
x, w = torch.ones(64, 256), torch.ones(4096, 256)
before = len(os.listdir("/proc/self/task"))
with torch.inference_mode():
    linear(x, w)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or native.library() is None, reason="counts threads of our own kernels")
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_our_own_team_has_as_many(threads: int) -> None:
    assert int(process(TEAM, str(threads)).stdout) == threads - 1  # beside the one that calls


@pytest.mark.parametrize(
    "verb", ["generate", "bench latency", "bench throughput", "verify", "info", "convert", "export"]
)
@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", "5000"])
def test_a_bad_number_is_one_clear_line(verb: str, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), f"--threads={number}"]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert "threads" in line
    assert number in line
    assert out == ""


@pytest.mark.parametrize(("argv", "source"), [(("--threads", "2"), "asked for"), ((), "OMP_NUM_THREADS")])
def test_info_and_bench_say_the_number_and_why(
    argv: tuple[str, ...], source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    count = int(argv[1]) if argv else 1
    small = ("--prompt-length", "4", "--new-tokens", "2", "--rounds", "1")
    for verb in (("info",), ("bench", "latency", *small)):
        assert main([*verb, "--json", *argv]) == 0
        said = json.loads(capsys.readouterr().out)["machine"]
        assert (said["threads"], said["threads from"]) == (count, source)
    assert main(["bench", "latency", *small, *argv]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(f" · {count} threads ({source})")


@pytest.mark.parametrize(("asked", "count"), [(None, 2), (3, 3)])
def test_training_takes_its_own_number_or_the_same(
    asked: int | None,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def stop() -> None:
        raise UsageError(f"{torch.get_num_threads()} threads")

    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr("bloomery.train.trainer.keep_freed_memory", stop)  # what comes next
    monkeypatch.chdir(Path(__file__).parent.parent)  # from where the recipe names its text
    number = () if asked is None else (f"--run.threads={asked}",)
    assert (
        main(["train", "recipes/train-tiny.toml", "--run.out", str(tmp_path / "run"), "--run.device", "cpu", *number])
        == 2
    )
    assert f"{count} threads" in capsys.readouterr().err.splitlines()[-1]
