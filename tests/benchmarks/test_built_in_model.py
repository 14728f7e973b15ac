"""The measuring of a small model: its figures are those of transformers, its samples those of anyone who draws them."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from bloomery import LLM, SamplingParams
from bloomery.data import bpe
from tiny import SHAPES, build

ROOT = Path(__file__).parents[2]
TRAINING = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md", ROOT / "docs" / "training.md"]
HELD_OUT = ROOT / "README.md"
CONTEXT = 64
TOKENS = 40
END = 2


def run(model: Path, to: Path, *more: str, held_out: Path = HELD_OUT, **environment: str) -> Any:
    script = [sys.executable, str(ROOT / "benchmarks" / "built_in_model.py"), str(model), "--to", str(to)]
    texts = ["--train", *map(str, TRAINING), "--held-out", str(held_out)]
    asked = ["--samples", "3", "--sample-tokens", str(TOKENS), "--threads", "1", *more]
    return subprocess.run(
        [*script, *texts, *asked], capture_output=True, text=True, timeout=280, env=os.environ | environment
    )


def make_model(folder: Path) -> PreTrainedModel:
    """A tiny random model by transformers, with a tokenizer for the texts and a context shorter than they are."""
    shape = next(shape for shape in SHAPES if shape.name == "bloom-8-heads")
    made = build(replace(shape, options=shape.options | {"seq_length": CONTEXT}), folder)
    words = bpe.train_tokenizer([file.read_text() for file in TRAINING], made.model.config.vocab_size)
    for name, text in bpe.tokenizer_files(words, CONTEXT).items():
        (folder / name).write_text(text)
    return made.model


@torch.inference_mode()
def nats(model: PreTrainedModel, ids: list[int], last: int) -> float:
    """Of the last so many tokens, each after all before it."""
    logits = model(torch.tensor([ids[:-1]])).logits[0, -last:]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[-last:]), reduction="sum"))


@pytest.mark.slow
def test_figures_are_those_of_transformers_and_samples_can_be_drawn_again(tmp_path: Path) -> None:
    model, to = make_model(tmp_path / "model"), tmp_path / "results" / "tiny.json"
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pyppmd'] = None\n")
    ran = run(tmp_path / "model", to, PYTHONPATH=str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    results = json.loads(to.read_text())

    text = HELD_OUT.read_text()
    words = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    ids = [*words.encode(text, add_special_tokens=False).ids, END]
    size = len(text.encode()) - len(words.decode(ids[:1]).encode())
    apart = [ids[at : at + CONTEXT + 1] for at in range(0, len(ids) - 1, CONTEXT)]
    disjoint = sum(nats(model, window, len(window) - 1) for window in apart)
    sliding, stride = nats(model, ids[:CONTEXT], CONTEXT - 1), CONTEXT // 4
    for start in range(CONTEXT, len(ids), stride):
        stop = min(start + stride, len(ids))
        sliding += nats(model, ids[stop - CONTEXT : stop], stop - start)
    for way, expected in (("disjoint", disjoint), ("sliding", sliding)):
        found = results["held_out"][way]
        assert found["tokens_predicted"] == len(ids) - 1
        assert found["nats_per_token"] == pytest.approx(expected / (len(ids) - 1), rel=1e-5)
        assert found["bits_per_byte"] == pytest.approx(expected / math.log(2) / size, rel=1e-5)
    assert disjoint != pytest.approx(sliding, rel=1e-4)
    assert results["model"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert results["model"]["weights_bytes"] == (tmp_path / "model" / "model.safetensors").stat().st_size

    drawn = results["samples"]["drawn"]
    llm = LLM(tmp_path / "model")
    assert [sample["seed"] for sample in drawn["samples"]] == [0, 1, 2]
    for sample in drawn["samples"]:
        params = SamplingParams(max_new_tokens=TOKENS, temperature=0.8, seed=sample["seed"])
        assert llm.generate(sample["prompt"], params)[0].text == sample["text"]
        copy = sample["longest_copy"]
        assert copy["text"] in sample["text"]
        assert any(copy["text"] in file.read_text() for file in TRAINING if file.name == copy["source"])
    assert drawn["words_in_training"] == drawn["words"] - sum(len(s["unknown_words"]) for s in drawn["samples"])
    assert results["samples"]["held_out_stretches"]["word_share"] > drawn["word_share"]

    assert [row["name"] for row in results["baselines"]] == ["xz -9e"]
    assert "pyppmd is not installed" in ran.stderr
    assert list(results["left_out"]) == ["PPMd order 10, untrained and primed"]
    assert results["not_measured"] == {}
    assert f"| {results['held_out']['sliding']['bits_per_byte']:.4f} |" in ran.stdout


@pytest.mark.slow
def test_what_cannot_be_measured_fails_and_the_rest_is_kept(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    ran = run(tmp_path / "model", tmp_path / "results.json", "--sample-tokens", str(CONTEXT))
    assert ran.returncode == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["not_measured"]) == ["samples"]
    assert "could not be measured" in ran.stdout
    assert results["held_out"]["disjoint"]["bits_per_byte"] > 0


@pytest.mark.slow
def test_a_training_text_is_not_held_out(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    copied = shutil.copy(TRAINING[1], tmp_path / "other-name.txt")
    ran = run(tmp_path / "model", tmp_path / "results.json", held_out=Path(copied))
    assert ran.returncode == 1
    assert "held-out text must not be learned from" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "results.json").exists()
