"""Engines take turns on the same prompts, a wrong answer is no figure, and figures are what arithmetic says of them.

Needs no peer: engines are made up, but for ours and transformers in the one run of all.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from bloomery.checkpoint.random import random_folder

ROOT = Path(__file__).parents[2]
FAKE = """
import os, sys
from peers.cpu.turn import Texts

class Fake:
    versions = {"fake": "1"}
    def facts(self):
        print("a library says something")
        return {"threads": os.environ["OMP_NUM_THREADS"]}
    def run(self, prompts, new_tokens):
        os.write(1, b"and again\\n")
        first = prompts[0][0]
        if first == 13:
            raise ValueError("13 is too much")
        if first == 14:
            print("gone", file=sys.stderr, flush=True)
            os._exit(3)
        texts = Texts(len(prompts))
        for step in range(new_tokens - (first == 15)):
            texts.came((index, prompt[0] + step) for index, prompt in enumerate(prompts))
        return texts

def load(job):
    if job.form == "none":
        raise OSError("there is no such form")
    return Fake()
"""


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Modules of the benchmarks, which are no package that is installed, by their names."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    class Modules:
        def __getattr__(self, name: str) -> Any:
            return import_module("cpu_peers" if name == "main" else f"peers.cpu.{name}")

    return Modules()


@pytest.fixture
def fake(peers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts the made-up engine in a form, in a process of its own."""
    (tmp_path / "fake_engine.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(peers.started, "PAUSE", 0.0)

    @contextmanager
    def start(form: str = "fp32") -> Iterator[Any]:
        job = peers.turn.Job("none", form, 3, (peers.turn.Shape(2, 4, 5),))
        with peers.started.started("fake", sys.executable, "fake_engine", job, tmp_path) as running:
            yield running

    return start


def test_an_engine_answers_turn_by_turn_whatever_its_libraries_print(peers: Any, fake: Any) -> None:
    shape = peers.turn.Shape(2, 1, 3)
    with fake() as running:
        assert running.ready["versions"] == {"fake": "1"}
        assert running.ready["facts"] == {"threads": "3"}
        assert running.ready["load_s"] >= 0
        for first in (1, 5):
            answer = running.ask([[first], [first + 100]], shape, 200)
            assert answer["ids"] == [list(range(first, first + 3)), list(range(first + 100, first + 103))]
            assert answer["peak_bytes"] > 1e6
    assert running.process.poll() is not None


@pytest.mark.parametrize(
    ("first", "said"),
    [(13, "ValueError: 13 is too much"), (14, "exit code 3: gone"), (15, "miscount: text 1 of 1 has 2 tokens, and 3")],
)
def test_an_engine_that_fails_says_why(peers: Any, fake: Any, first: int, said: str) -> None:
    with pytest.raises(peers.engines.NotAvailable, match=said), fake() as running:
        running.ask([[first]], peers.turn.Shape(1, 1, 3), 200)


def test_an_engine_that_cannot_be_loaded_says_why(peers: Any, fake: Any) -> None:
    with pytest.raises(peers.engines.NotAvailable, match="there is no such form"), fake("none"):
        pass


def test_silence_is_no_answer(peers: Any, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.started, "LONGEST", 0.01)  # shorter than any interpreter takes to start
    with pytest.raises(peers.engines.NotAvailable, match="no answer within"), fake():
        pass


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ids": [[1, 2]]}, "1 texts came of 2"),
        ({"ids": [[1, 2], [3, 4, 5]]}, "text 2 of 2 has 3 tokens, and 2"),
        ({"arrivals": [[0.1, 0.2], [0.1]]}, "text 2 of 2 has 2 tokens, and 2"),
        ({"ids": [[1, 2], [3, 10]]}, "text 2 of 2 has a token beyond the 10"),
        ({"ids": [[-1, 2], [3, 4]]}, "text 1 of 2 has a token beyond the 10"),
        ({"arrivals": [[0.2, 0.1], [0.1, 0.2]]}, "text 1 of 2 has tokens that came before"),
    ],
)
def test_a_miscount_is_no_figure(peers: Any, wrong: dict[str, Any], said: str) -> None:
    right = {"ids": [[1, 2], [3, 4]], "arrivals": [[0.1, 0.2], [0.1, 0.2]]}
    peers.started.check(right, peers.turn.Shape(2, 4, 2), 10)
    with pytest.raises(peers.engines.NotAvailable, match=said):
        peers.started.check(right | wrong, peers.turn.Shape(2, 4, 2), 10)


def test_a_step_is_what_all_texts_take_together(peers: Any) -> None:
    """Told one after the other, a text that began a step late, and one that had nothing but its first token."""
    seconds_of = peers.rounds.seconds_of
    told = [[1.0 + step + 0.001 * text for step in range(4)] for text in range(8)]
    assert seconds_of(told) == pytest.approx(1.0)
    assert seconds_of([[1.0, 6.0, 8.0, 10.0], [6.0, 8.0, 10.0, 10.5]]) == pytest.approx(2.0)
    assert seconds_of([[0.7]]) == 0.7
    with pytest.raises(peers.engines.NotAvailable, match="more new tokens"):
        seconds_of([[1.0, 2.0], [3.0, 4.0]])


class Scripted:
    """Takes so many seconds a token, and fails in the turn that is named."""

    def __init__(self, modules: Any, seconds: float, log: list[Any], fails_at: int = -1) -> None:
        self.modules, self.seconds, self.log, self.left = modules, seconds, log, fails_at

    def ask(self, prompts: Sequence[list[int]], shape: Any, vocab_size: int) -> dict[str, Any]:
        self.log.append((self, shape, [list(prompt) for prompt in prompts]))
        if self.left == 0:
            raise self.modules.engines.NotAvailable("it fell over")
        self.left -= 1
        times = [self.seconds * (step + 1) for step in range(shape.new_tokens)]
        tokens = [[prompt[0]] * shape.new_tokens for prompt in prompts]
        return {"ids": tokens, "arrivals": [times] * shape.requests, "peak_bytes": 7}


def test_all_take_turns_on_the_same_prompts_and_one_that_fails_is_left_out(peers: Any) -> None:
    log: list[Any] = []
    shapes = {"decode 1": peers.turn.Shape(1, 32, 9), "prefill 128": peers.turn.Shape(1, 128, 1)}
    engines = {
        "a": Scripted(peers, 0.002, log),
        "b": Scripted(peers, 0.003, log),
        "c": Scripted(peers, 0.004, log, fails_at=3),
    }
    heat = peers.rounds.run_rounds(engines, shapes, 2, 100, lambda: {"gb_per_s": 1.0})
    assert heat.left_out == {"c": "prefill 128, round 1: it fell over"}
    assert [set(found["decode 1"]) for found in heat.rounds] == [{"a", "b", "c"}, {"a", "b"}]
    assert [set(found["prefill 128"]) for found in heat.rounds] == [{"a", "b"}, {"a", "b"}]
    assert heat.rounds[0]["decode 1"] == pytest.approx({"a": 2.0, "b": 3.0, "c": 4.0})
    assert heat.firsts == pytest.approx({"a": 0.002, "b": 0.003, "c": 0.004})
    assert len(heat.rulers) == 3
    turns = [log[:3], log[3:6], log[6:9], log[9:12], log[12:14], log[14:]]
    assert all(len({str(prompts) for _, _, prompts in turn}) == 1 for turn in turns)
    assert len({str(turn[0][2]) for turn in turns}) == len(turns), "prompts of an earlier turn could be remembered"
    assert turns[0][0][0] is engines["a"]
    assert turns[2][0][0] is engines["b"], "who begins a round changes"


def results_of(peers: Any, rounds: list[dict[str, dict[str, float]]], rulers: list[dict[str, float]]) -> dict[str, Any]:
    """A results file of BLOOM-560m, for which nothing was run."""
    shapes = peers.rounds.measures(32)
    names = dict.fromkeys(name for found in rounds for one in found.values() for name in one)
    read = {"1": {"weights (bytes a step)": 900_000_000, "KV (bytes a step)": 100_000_000}}
    one = {"load_s": 1.5, "first_s": 0.5, "peak_bytes": 2e9, "versions": {"some": "1"}, "facts": {"read": read}}
    filled = [{measure: found.get(measure, {}) for measure in shapes} for found in rounds]
    results = {
        "machine": {"cpu": "A processor"},
        "threads": 2,
        "options": {"shape": "bloom-560m", "rounds": len(rounds), "steps": 32},
        "config": asdict(random_folder("bloom-560m").config),
        "measures": {name: shape._asdict() for name, shape in shapes.items()},
        "engines": dict.fromkeys(names, one),
        "left_out": {"ours-int4": "no such form"},
        "agreement": {"reference": "ours-bf16", "engines": {"llama-bf16": {"of": 8, "first_tokens": 7, "one_text": 3}}},
        "heats": [{"engines": list(names), "rounds": filled, "rulers": rulers}],
    }
    return results | {"summary": peers.figures.summary(results)}


ROUNDS = [
    {
        "decode 1": {"ours-bf16": 40.0, "llama-bf16": 60.0},
        "decode 8": {"ours-bf16": 44.0},
        "prefill 512": {"ours-bf16": 1000.0},
    },
    {
        "decode 1": {"ours-bf16": 50.0, "llama-bf16": 100.0},
        "decode 8": {"ours-bf16": 60.0},
        "prefill 512": {"ours-bf16": 2000.0},
    },
    {"decode 1": {"ours-bf16": 20.0}, "decode 8": {"ours-bf16": 23.0}, "prefill 512": {"ours-bf16": 1000.0}},
]
RULERS = [{"gb_per_s": speed, "bf16_tflops": 0.5} for speed in (20.0, 30.0, 30.0, 70.0)]


def test_what_is_compared_is_compared_within_a_round(peers: Any) -> None:
    results = results_of(peers, ROUNDS, RULERS)
    assert peers.figures.speed_ups(results, "decode 1", "ours-bf16", "llama-bf16") == [1.5, 2.0]
    assert peers.figures.step_times(results, "ours-bf16", 8) == [1.1, 1.2, 1.15]
    # 1 GB in 40, 50 and 20 ms: 25, 20 and 50 GB/s, of 25, 30 and 50
    assert peers.figures.shares_of_bandwidth(results, "ours-bf16") == pytest.approx([1.0, 2 / 3, 1.0])
    faster = results["summary"]["ours_is_faster"]["llama-bf16"]["decode 1"]
    assert (faster["median"], faster["least"], faster["most"]) == (1.75, 1.5, 2.0)


def test_a_prompt_takes_its_products_and_the_keys_that_each_position_sees(peers: Any) -> None:
    """BLOOM-560m: 24 layers of 12 matrices of 1024 x 1024; scores and sums are 4 operations a number of a key."""
    results = results_of(peers, ROUNDS, RULERS)
    linear, seen = 2 * 24 * 12 * 1024**2 * 512, sum(4 * 24 * 1024 * keys for keys in range(1, 513))
    shares = peers.figures.shares_of_products(results, "ours-bf16", 512)
    assert shares == pytest.approx([(linear + seen) / 1e12 / seconds / 0.5 for seconds in (1.0, 2.0, 1.0)])


def test_goals_are_met_missed_or_not_measured(peers: Any) -> None:
    results = results_of(peers, ROUNDS, RULERS)
    found = {one.goal.title: one for one in peers.goals.reached(results)}
    assert len(found) == len(peers.goals.GOALS)
    assert found["share of read bandwidth, batch 1, bf16"].met
    assert found["beside llama.cpp bf16, decode 1"].met
    assert found["step time M=8 / M=1, bf16"].met
    assert found["prefill 512, share of torch's bf16 products, bf16"].met
    assert found["beside llama.cpp Q8_0, decode 1"].met is None
    slower = [found | {"decode 8": {"ours-bf16": 100.0}} for found in ROUNDS]
    missed = {one.goal.title: one for one in peers.goals.reached(results_of(peers, slower, RULERS))}
    assert missed["step time M=8 / M=1, bf16"].met is False


def test_the_table_has_every_engine_and_what_is_missing(peers: Any) -> None:
    said = peers.table.as_tables(results_of(peers, ROUNDS, RULERS))
    assert "| bloomery bf16 | 40.0 (20.0–50.0) | 44.0 (23.0–60.0) | – | – | 512 (256–512) | – |" in said
    assert "| llama.cpp bf16 | 80.0 (60.0–100.0) | – | – | – | – | – |" in said
    assert "| bloomery bf16 beside llama.cpp bf16 | 1.75 (1.50–2.00) | – | – | – | – | – |" in said
    assert "| llama.cpp bf16 | 1.50 | 2.00 | 2,000 | 7 of 8 | 3 of 8 |" in said
    assert "| share of read bandwidth, batch 1, bf16 | ≥ 0.82 | 1.00 (0.67–1.00) | yes |" in said
    assert "| beside llama.cpp Q8_0, decode 1 | ≥ 1.90 | not measured |  |" in said
    assert "- bloomery int4 is left out: no such form" in said
    lines = [line for line in said.splitlines() if line.startswith("|")]
    heads = [place for place, line in enumerate(lines) if line.startswith("|---")]
    for begin, end in zip(heads, [*(place - 1 for place in heads[1:]), len(lines)], strict=True):
        assert len({line.count("|") for line in lines[begin - 1 : end]}) == 1, "a table has rows of other lengths"


def test_the_picture_is_drawn_of_what_there_is(peers: Any, tmp_path: Path) -> None:
    peers.plot.draw(results_of(peers, ROUNDS, RULERS), tmp_path / "some.png")
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")
    peers.plot.draw(results_of(peers, [], RULERS[:1]), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_texts_agree_up_to_the_first_token_that_differs(peers: Any) -> None:
    many = {
        "llama-bf16": [[1, 9], [2, 9], [3, 9]],
        "ours-fp32": [[1, 0], [2, 0], [4, 0]],
    }
    one = {"llama-bf16": [[5, 6, 0, 8]], "ours-fp32": [[5, 6, 7, 8]]}
    found = peers.figures.agreement({"many": many, "one": one}, "many", "one", 3)
    assert found["reference"] == "ours-fp32"
    assert found["engines"]["llama-bf16"] == {"of": 3, "first_tokens": 2, "one_text": 2}
    assert found["engines"]["ours-fp32"] == {"of": 3, "first_tokens": 3, "one_text": 3}
    assert peers.figures.agreement({}, "many", "one", 3) == {"reference": None, "engines": {}}


def test_engines_that_find_no_room_together_run_with_those_they_are_compared_with(
    peers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, names = peers.main, ["ours-bf16", "ours-int8", "llama-bf16", "ctranslate2-int8"]
    needed = main.needs(names, 10**9)
    assert needed == pytest.approx((2 + 1.2 + 2 + 1.5) * 1e9 + 4 * main.EACH)
    monkeypatch.setattr(main, "memory_left", lambda device: 2 * needed)
    assert main.together(names, 10**9, apart=False) == [names]
    apart = [["ours-bf16", "llama-bf16"], ["ours-int8", "ctranslate2-int8"]]
    assert main.together(names, 10**9, apart=True) == apart
    monkeypatch.setattr(main, "memory_left", lambda device: needed)
    assert main.together(names, 10**9, apart=False) == apart
    assert main.together([], 10**9, apart=False) == []


def test_llama_cpp_is_built_for_what_the_processor_has(peers: Any) -> None:
    asked = peers.install.cmake_arguments("processor : 0\nflags : fpu avx avx2 avx512f avx512_bf16\n").split()
    assert asked[0] == "-DGGML_NATIVE=OFF"
    chosen = dict(one.removeprefix("-DGGML_").split("=") for one in asked)
    assert {name for name, value in chosen.items() if value == "ON"} == {"AVX", "AVX2", "AVX512", "AVX512_BF16"}


@pytest.mark.slow
def test_one_run_of_ours_beside_transformers_without_any_other(tmp_path: Path) -> None:
    shape = {"model_type": "bloom", "vocab_size": 600, "hidden_size": 64, "n_layer": 2, "n_head": 4, "seq_length": 2048}
    (tmp_path / "small.json").write_text(json.dumps(shape | {"layer_norm_epsilon": 1e-5}))
    engines = ["ours-bf16", "ours-fp32", "transformers-bf16", "llama-bf16"]
    command = [sys.executable, str(ROOT / "benchmarks" / "cpu_peers.py"), "--shape", str(tmp_path / "small.json")]
    command += ["--engines", *engines, "--rounds", "1", "--steps", "8", "--threads", "1"]
    ran = subprocess.run(
        [*command, "--to", str(tmp_path / "to" / "small.json")], capture_output=True, text=True, timeout=280
    )
    assert ran.returncode == 0, ran.stderr
    results = json.loads((tmp_path / "to" / "small.json").read_text())
    assert list(results["engines"]) == engines[:3]
    assert "BF16.gguf cannot be made: ModuleNotFoundError" in results["left_out"]["llama-bf16"]
    assert results["agreement"]["engines"]["ours-bf16"]["first_tokens"] >= 6
    assert results["agreement"]["engines"]["transformers-bf16"]["first_tokens"] >= 6
    (found,) = results["heats"][0]["rounds"]
    assert all(set(one) == set(engines[:3]) and min(one.values()) > 0 for one in found.values())
    assert "| bloomery bf16 beside transformers bf16 |" in ran.stdout
    assert (tmp_path / "to" / "small.png").exists()
