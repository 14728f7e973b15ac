"""`convert`, `export`, `verify` and `info` of stores, as they are typed."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bloomery.cli import main
from bloomery.model.cache import KVCache
from bloomery.ops import native
from talker import build_talker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_talker(tmp_path_factory.mktemp("stores") / "talker")


@pytest.fixture
def store(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["convert", str(folder), str(tmp_path / "store"), "--tp", "2"]) == 0
    capsys.readouterr()
    return tmp_path / "store"


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


# --- convert and export ----------------------------------------------------------------------------------------------


def test_convert_says_what_it_wrote(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--source", str(folder), "--target", str(tmp_path / "store"), "--dtype", "bfloat16"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'store'}\n"
    assert err.count("\n") == 1
    assert "1 file of weights" in err
    assert "GB/s" in err


def test_generate_from_a_store_says_the_same(folder: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for model in (folder, store):
        assert main(["generate", "the cat", "--model", str(model), "--max-new-tokens", "20"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != "\n"


def test_export_of_a_store_is_the_folder(
    folder: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(store), str(tmp_path / "model")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'model'}\n"
    assert "GB/s" in err
    ours, theirs = load_file(tmp_path / "model" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "bloomery {verb} SOURCE TARGET"),
        (["dickens"], "bloomery {verb} SOURCE TARGET"),
        (["dickens", "a", "b"], "one source and one target: 'b' is too many"),
        (["a", "--source", "dickens"], "source: 'a' stands beside --source"),
        (["dickens", "a", "--target", "b"], "target: 'a' stands beside --target"),
        (["no/such/model", "a"], "no/such/model"),
    ],
)
@pytest.mark.parametrize("verb", ["convert", "export"])
def test_what_is_missing_or_too_much_is_said(
    verb: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, *words]) == 2
    err = capsys.readouterr().err
    assert said.format(verb=verb) in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("option", [("--tp", "5"), ("--jobs", "0"), ("--dtype", "int8"), ("--tp", "1.5")])
def test_options_of_convert_that_cannot_be_are_refused(
    option: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "dickens", str(tmp_path / "store"), *option]) == 2
    err = capsys.readouterr().err
    assert option[0].strip("-") in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# --- verify ----------------------------------------------------------------------------------------------------------


def verify(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[dict[str, Any]], str]:
    code = main(["verify", *map(str, words), "--json"])
    out, err = capsys.readouterr()
    return code, rows(out), err


def test_a_sound_store_passes(store: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, err = verify(capsys, store, "--hashes", "--nan", "--tokens", "4")
    assert code == 0
    assert [row["check"] for row in found if "check" in row] == ["structure", "hashes", "numbers"]
    assert all(row["passed"] for row in found)
    answers = [row for row in found if "prompt" in row]
    assert len(answers) > 1
    assert f"compared with those of {folder}" in err


def test_what_is_compared_is_said(
    store: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not compared" not in verify(capsys, folder, "--tokens", "4")[2]
    assert verify(capsys, folder, "--files-only")[2] == ""
    for option in (("--tokens", "4"), ("--device", "cpu")):
        assert main(["verify", str(folder), "--files-only", *option]) == 2
        assert "leave --tokens and --device out" in capsys.readouterr().err
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    assert main(["convert", str(moved), str(tmp_path / "other"), "--dtype", "bfloat16"]) == 0
    capsys.readouterr()
    code, found, err = verify(capsys, tmp_path / "other")
    assert (code, len(found)) == (0, 1)
    assert "not compared: the store is in bfloat16" in err
    shutil.rmtree(moved)
    code, found, err = verify(capsys, tmp_path / "other")
    assert (code, len(found)) == (0, 1)
    assert f"not compared: {moved}, which the store was made from, is not here" in err
    monkeypatch.setattr("bloomery.cli.verify.find_spec", lambda name: None)
    code, found, err = verify(capsys, folder)
    assert (code, len(found)) == (0, 1)
    assert "transformers is not installed" in err


def test_another_model_under_the_sources_name_is_not_compared_with(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(folder, tmp_path / "source"))
    assert main(["convert", str(source), str(tmp_path / "store")]) == 0
    tensors = load_file(source / "model.safetensors")
    tensors["transformer.word_embeddings.weight"][3] += 1
    save_file(tensors, source / "model.safetensors")
    capsys.readouterr()
    code, found, err = verify(capsys, tmp_path / "store")
    assert (code, len(found)) == (0, 1)
    assert "not compared" in err
    assert "but other weights" in err


def test_a_flipped_bit_is_found_by_its_hash_alone(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = next(store.glob("weights-001-*"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    assert verify(capsys, store, "--files-only")[0] == 0
    code, found, _ = verify(capsys, store, "--hashes")
    assert code == 1
    wrong = [row for row in found if not row["passed"]]
    assert [row["check"] for row in wrong] == ["hashes"]
    assert file.name in wrong[0]["detail"]
    assert not any("prompt" in row for row in found)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_files_beside_the_weights_are_hashed_too(store: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    text = (store / file).read_text()
    changed = text.replace(" ", "\t", 1) if file == "config.json" else text.replace("cat", "cot", 1)
    assert len(changed) == len(text) != changed
    (store / file).write_text(changed)
    code, found, _ = verify(capsys, store, "--hashes", "--files-only")
    assert code == 1
    assert file in found[1]["detail"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "surplus", "manifest", "header"])
def test_a_damaged_store_fails(store: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    file = next(store.glob("weights-000-*"))
    named = file.name
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "surplus":
        named = "weights-009-00001.safetensors"
        shutil.copy(file, store / named)
    elif damage == "manifest":
        named = "manifest.json"
        (store / named).write_text("{")
    else:
        content = bytearray(file.read_bytes())
        content[7] = 255
        file.write_bytes(content)
    code, found, _ = verify(capsys, store, "--hashes", "--nan")
    assert code == 1
    assert not found[0]["passed"]
    assert named in found[0]["detail"]
    assert {row["check"] for row in found} == {"structure", "hashes", "numbers"}


def test_tensors_that_hold_nan_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors["transformer.h.1.mlp.dense_h_to_4h.bias"][3] = torch.nan
    tensors["transformer.ln_f.weight"][:2] = torch.inf
    save_file(tensors, broken / "model.safetensors")
    assert main(["convert", str(broken), str(tmp_path / "store")]) == 0
    capsys.readouterr()
    for path in (broken, tmp_path / "store"):
        code, found, _ = verify(capsys, path, "--nan")
        assert code == 1
        details = [row["detail"] for row in found if not row["passed"]]
        assert ["blocks.1.mlp.up.bias" in details[0], "norm.weight" in details[1]] == [True, True]
        assert len(details) == 2
        assert verify(capsys, path, "--files-only")[0] == 0


def test_a_broken_folder_fails(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    del tensors["transformer.ln_f.bias"]
    save_file(tensors, broken / "model.safetensors")
    code, found, _ = verify(capsys, broken)
    assert code == 1
    assert "ln_f.bias" in found[0]["detail"]


def test_hashes_of_a_fetched_model_are_those_of_the_hub(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched = Path(shutil.copytree(folder, tmp_path / "fetched"))
    files = []
    for file in sorted(fetched.iterdir()):
        content = file.read_bytes()
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        if file.suffix == ".json":
            digest = "git-sha1:" + hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        files.append({"path": file.name, "size": len(content), "digest": digest})
    said = {"format": 1, "model": "org/name", "source": "https://hub", "commit": "a" * 40, "license": None}
    (fetched / "fetched.json").write_text(json.dumps(said | {"complete": True, "files": files}))
    code, found, _ = verify(capsys, fetched, "--hashes", "--files-only")
    assert code == 0
    assert f"{len(files)} files" in found[1]["detail"]
    for name in ("config.json", "model.safetensors"):
        content = bytearray((fetched / name).read_bytes())
        content[-3] ^= 1 if name.startswith("model") else 0
        (fetched / name).write_bytes(content + (b" " if name == "config.json" else b""))
        code, found, _ = verify(capsys, fetched, "--hashes", "--files-only")
        assert code == 1
        assert any(name in row["detail"] for row in found if not row["passed"])
    (fetched / "tokenizer.json").unlink()
    code, found, _ = verify(capsys, fetched, "--hashes", "--files-only")
    assert code == 1
    assert any("tokenizer.json cannot be read" in row["detail"] for row in found)


def test_hashes_of_a_folder_that_has_none_are_not_made_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), "--hashes"]) == 2
    assert "no hashes to compare with" in capsys.readouterr().err


def test_verify_prints_a_table(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(store), "--files-only"]) == 0
    assert "structure" in capsys.readouterr().out
    next(store.glob("weights-000-*")).unlink()
    assert main(["verify", str(store), "--files-only"]) == 1
    assert "FAILED" in capsys.readouterr().out


# --- info ------------------------------------------------------------------------------------------------------------


def info(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["info", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_info_of_a_store(store: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = info(capsys, store)["model"]
    weights = load_file(folder / "model.safetensors")
    assert facts["store"] == "cut for 2 ranks"
    assert facts["made from"] == str(folder)
    assert facts["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert facts["by dtype (bytes)"] == {"float32": sum(tensor.nbytes for tensor in weights.values())}
    assert facts["licence"] == "not stated"
    assert facts["runs here in"] == "float32"
    assert facts["kernels"].startswith("PyTorch" if native.library() is None else "our own")
    assert main(["info", str(store)]) == 0
    assert "cut for 2 ranks" in capsys.readouterr().out


def test_info_reads_no_weights(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: object, name: str) -> None:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr("bloomery.checkpoint.files.MappedFile.read", read)
    info(capsys, store)


def test_info_of_memory_is_what_a_cache_takes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bloomery.checkpoint.folder import read_folder

    found = info(capsys, folder, "--tokens", "100", "--batch", "3")
    memory, model = found["memory"], found["model"]
    cache = KVCache(read_folder(folder).config, 6, torch.float32, torch.device("cpu"))
    assert memory["keys and values (bytes)"] == cache.keys.nbytes + cache.values.nbytes
    assert memory["weights (bytes)"] == model["weights (bytes)"]
    parts = [memory[name] for name in memory if "(bytes)" in name and "together" not in name]
    assert memory["together (bytes)"] == sum(parts) > model["weights (bytes)"]
    assert memory["tokens of a step, at most"] == 300


def test_info_of_memory_counts_keys_and_values_as_they_would_be_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bloomery.checkpoint.folder import read_folder

    config = read_folder(folder).config
    for name in ("float32", "bfloat16", "float16", "int8"):
        found = info(capsys, folder, "--tokens", "100", "--batch", "3", "--cache-dtype", name)
        cache = KVCache(config, 6, getattr(torch, name), torch.device("cpu"))
        assert found["memory"]["keys and values (bytes)"] == cache.keys.nbytes + cache.values.nbytes
        assert found["model"]["KV per token (bytes)"] * 6 * 64 == cache.keys.nbytes + cache.values.nbytes
        assert name in found["model"]["kernels"]
        if native.library() is not None:
            ours = "attention in float32 to keys and values in" in found["model"]["kernels"]
            assert ours == (name != "float16")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tokens", "0"], "tokens is 0: give 1 to 512"),
        (["--tokens", "513"], "tokens is 513: give 1 to 512"),
        (["--batch", "0"], "batch is 0"),
    ],
)
def test_memory_of_what_cannot_be_is_refused(
    folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(folder), *words]) == 2
    assert said in capsys.readouterr().err
    assert main(["info", *words]) == 2
    assert "are for a model" in capsys.readouterr().err


def test_a_cache_dtype_without_a_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--cache-dtype", "int8"]) == 2
    assert "are for a model" in capsys.readouterr().err


def test_words_of_others_are_printed_as_they_are(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Square brackets mean colours to the library that draws tables."""
    path = Path(shutil.copytree(folder, tmp_path / "model"))
    (path / "README.md").write_text("---\nlicense: '[/red] [bold]mine'\n---\n")
    assert main(["info", str(path)]) == 0
    assert "[/red] [bold]mine" in capsys.readouterr().out


def test_info_lists_what_is_here(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOOMERY_CACHE_DIR", str(tmp_path / "ours"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "theirs"))
    assert list(info(capsys, "--local")["models here"]) == ["dickens"]
    ours = tmp_path / "ours" / "models" / "org--name" / ("a" * 40)
    shutil.copytree(folder, ours)
    files = [{"path": f.name, "size": f.stat().st_size, "digest": f"sha256:{'0' * 64}"} for f in ours.iterdir()]
    said = {"format": 1, "model": "org/name", "source": "https://hub", "commit": "a" * 40, "license": None}
    (ours / "fetched.json").write_text(json.dumps(said | {"complete": True, "files": files}))
    theirs = tmp_path / "theirs" / "models--org--other" / "snapshots" / ("b" * 40)
    shutil.copytree(folder, theirs)
    broken = tmp_path / "theirs" / "models--org--broken" / "snapshots" / ("c" * 40)
    shutil.copytree(folder, broken)
    (broken / "model.safetensors").unlink()
    found = info(capsys, "--local")["models here"]
    assert list(found) == ["dickens", f"org/name@{'a' * 40}", f"org/other@{'b' * 40}"]
    assert found[f"org/name@{'a' * 40}"]["path"] == str(ours)
    for name in found:
        info(capsys, name, "--offline")


def test_options_that_mean_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--revision", "main"], ["--token", "hf_x"], ["--offline"]):
        assert main(["convert", "--shape", "gpt2", str(tmp_path / "new"), *words]) == 2
        assert "leave --revision, --token and --offline out" in capsys.readouterr().err
    assert main(["info", "--revision", "main"]) == 2
    assert "--revision is for a model of the Hub" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_verify_tells_what_it_found_before_the_answers_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = build_talker(tmp_path / "nan")
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.ln_f.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    assert main(["verify", str(folder), "--json"]) == 1
    found = rows(capsys.readouterr().out)
    assert [(row["check"], row["passed"]) for row in found] == [("structure", True), ("answers", False)]
    assert "not finite" in found[1]["detail"]
