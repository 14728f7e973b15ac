"""`--quant` as it is typed: convert, generate, bench; and what info, verify, export and train say of the result."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.cli import main
from bloomery.cli.options import Scheme
from bloomery.model.size import nbytes, weights_read
from bloomery.ops import native
from bloomery.quant.scheme import NONE, SCHEMES
from talker import build_talker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_talker(tmp_path_factory.mktemp("quantized") / "talker")


@pytest.fixture(scope="module")
def store(folder: Path) -> Path:
    assert main(["convert", str(folder), str(folder.parent / "store"), "--quant", "int8", "--dtype", "bfloat16"]) == 0
    return folder.parent / "store"


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_the_command_line_knows_all_schemes() -> None:
    assert get_args(Scheme) == (NONE, *SCHEMES)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_quantized_store_says_what_quantizing_while_loading_says(
    folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "convert", folder, tmp_path / "store", "--quant", name)[0] == 0
    said = []
    for model in (["--model", tmp_path / "store"], ["--model", folder, "--quant", name]):
        code, out, err = run(capsys, "generate", "5 6 7", "--ids", *model, "--max-new-tokens", 20)
        assert code == 0
        said.append((out, [line for line in err.splitlines() if "quantized" in line]))
    assert said[0][0] == said[1][0]
    assert len(said[0][0].split()) > 5
    assert said[0][1] == []
    (line,) = said[1][1]
    assert f"linear layers to {name} (" in line


def test_the_word_may_be_repeated_and_not_changed(
    folder: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "generate", "the cat", "--model", store, "--quant", "int8", "--max-new-tokens", 3)[0] == 0
    code, out, err = run(capsys, "generate", "the cat", "--model", store, "--quant", "int4")
    assert (code, out) == (2, "")
    assert f"quant is int4, but {store} is a store in int8" in err
    assert err.count("\n") == 1


def refusals(folder: Path, store: Path, target: Path) -> dict[str, tuple[list[object], str]]:
    train = ("train", "--data.train", __file__, "--data.valid", Path(__file__).with_name("test_stores.py"))
    return {
        "converted": (["convert", store, target], f"cannot be converted: start from the original, {folder}"),
        "cut": (["convert", store, target, "--tp", 2], "cannot be converted"),
        "exported": (["export", store, target], f"cannot be exported: start from the original, {folder}"),
        "trained": ([*train, "--model.start", store, "--run.out", target, "--schedule.warmup", 0], "cannot be trained"),
        "adapted": (["generate", "x", "--model", store, "--adapter", folder], "cannot take an adapter"),
        "transformers": (
            ["generate", "x", "--engine", "transformers", "--quant", "int8"],
            "--quant is not for --engine",
        ),
        "its own": (["generate", "x", "--engine", "transformers", "--model", store], "store"),
        "no scheme": (["generate", "x", "--quant", "int3"], "int3"),
        "not a scheme to write": (["convert", folder, target, "--quant", "q4"], "q4"),
    }


@pytest.mark.parametrize("case", refusals(Path(), Path(), Path()))
def test_what_cannot_be_is_refused_in_one_line(
    folder: Path, store: Path, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, said = refusals(folder, store, tmp_path / "target")[case]
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1, err
    assert not (tmp_path / "target").exists()


def info(capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, Any]:
    code, out, _ = run(capsys, "info", path, "--json")
    assert code == 0
    return json.loads(out)


def test_info_of_a_quantized_store_counts_packed_bytes(
    folder: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = load_decoder(read_folder(store))
    facts, plain = info(capsys, store)["model"], info(capsys, folder)["model"]
    assert facts["quantization"] == "int8 (a scale for each output, 8 bits a weight)"
    assert facts["parameters"] == plain["parameters"]
    sizes = {
        kind: sum(t.nbytes for t in decoder.parameters() if t.dtype == kind) for kind in (torch.uint8, torch.bfloat16)
    }
    assert facts["by dtype (bytes)"] == {"bfloat16": sizes[torch.bfloat16], "int8": sizes[torch.uint8]}
    assert facts["weights (bytes)"] == sum(sizes.values())
    assert facts["read per token (bytes)"] == nbytes(weights_read(decoder))
    assert info(capsys, store)["memory"]["weights (bytes)"] == sum(sizes.values())
    assert plain["read per token (bytes)"] == nbytes(weights_read(load_decoder(read_folder(folder))))
    native_or_not = "in int8, of tokens rounded to 8 bits" if native.library() else "unpacked from int8"
    assert native_or_not in facts["kernels"]
    assert "quantization" not in plain


def test_info_and_verify_of_a_store_for_two_ranks_need_no_ranks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store"
    assert run(capsys, "convert", folder, path, "--quant", "int4", "--tp", 2)[0] == 0
    facts = info(capsys, path)["model"]
    assert facts["store"] == "cut for 2 ranks"
    assert facts["by dtype (bytes)"]["int4"] > 0
    code, out, err = run(capsys, "verify", path, "--hashes", "--nan", "--json")
    assert code == 0
    assert [json.loads(line)["check"] for line in out.splitlines()] == ["structure", "hashes", "numbers"]
    assert "not compared: the store's weights are rounded to int4: verify what it was made from" in err
    code, _, err = run(capsys, "generate", "x", "--model", path)
    assert code == 2
    assert "was cut for tp 2, and tp 1 cannot read it" in err


def test_bench_measures_a_quantized_model(folder: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ("--new-tokens", 3, "--rounds", 1, "--prompt-length", 4, "--json")
    read = []
    for model in (["--model", folder], ["--model", folder, "--quant", "int8"], ["--model", store]):
        code, out, _ = run(capsys, "bench", "latency", *model, *short)
        assert code == 0
        said = json.loads(out)
        assert said["quant"] == ("int8" if read else "none")
        read.append(said["memory"]["weights (bytes a step)"])
    assert read[1] < read[0] / 2
    assert read[2] < read[1]  # whose other weights are in bfloat16


def test_a_draft_may_be_a_quantized_store(folder: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "the cat", "--model", folder, "--max-new-tokens", 12)
    plain, drafted = run(capsys, *words), run(capsys, *words, "--draft", store)
    assert plain[:2] == drafted[:2]
    assert "acceptance" in drafted[2]


def test_a_random_model_is_quantized_too(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ("--shape", folder / "config.json")
    assert run(capsys, "convert", *shape, tmp_path / "store", "--quant", "int4-g128")[0] == 0
    texts = [
        run(capsys, "generate", "5 6 7", "--ids", "--max-new-tokens", 5, *model)[1]
        for model in (("--model", tmp_path / "store"), (*shape, "--quant", "int4-g128"))
    ]
    assert texts[0] == texts[1]
