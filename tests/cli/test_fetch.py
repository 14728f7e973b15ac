"""`bloomery fetch` and `--offline` as a person meets them."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from bloomery import LLM, SamplingParams
from bloomery.cli import main
from hub_server import HubServer, Repo, connect, running
from talker import build_talker

NAME = "org/tiny"
FILES = {"config.json": b"{}", "model.safetensors": b"x" * 1000}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with running() as server:
        connect(monkeypatch, server, tmp_path)
        server.repos[NAME] = Repo()
        server.repos[NAME].commit(FILES)
        yield server
        huggingface_hub.close_session()


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    return code, *capsys.readouterr()


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    code, out, err = run(capsys, *argv, "-q")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert err.startswith("bloomery: error: ")
    return err


def test_the_folder_goes_to_stdout_and_the_rest_to_stderr(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "fetch", NAME)
    assert code == 0
    assert out.count("\n") == 1
    assert (Path(out.strip()) / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert "licence of org/tiny: apache-2.0" in err
    assert "2 files, 1.0 kB" in err
    assert run(capsys, "fetch", NAME, "-q") == (0, out, "")


def test_json_says_what_was_done(hub: HubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, out, _ = run(capsys, "fetch", f"{NAME}@main", "--json", "--to", str(tmp_path / "mine"), "--jobs", "1")
    assert json.loads(out) == {
        "model": NAME,
        "commit": hub.repos[NAME].refs["main"],
        "path": str(tmp_path / "mine"),
        "license": "apache-2.0",
        "files": ["config.json", "model.safetensors"],
        "bytes": 1002,
        "fetched_bytes": 1002,
    }


def test_chosen_files_of_a_revision(hub: HubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    hub.repos[NAME].commit({"a.json": b"1", "b.txt": b"2", "c.bin": b"3"}, "v2")
    to = tmp_path / "mine"
    argv = ("fetch", NAME, "--revision", "v2", "--include", "*.json", "--include", "*.txt", "--to", str(to))
    assert run(capsys, *argv)[0] == 0
    assert {file.name for file in to.iterdir()} == {"a.json", "b.txt", "fetched.json"}


def test_offline_says_where_it_is_or_how_to_get_it(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"run 'bloomery fetch {NAME}' without it" in refused(capsys, "fetch", NAME, "--offline")
    assert hub.connections == 0
    folder = run(capsys, "fetch", NAME)[1]
    asked = hub.connections
    assert run(capsys, "fetch", NAME, "--offline")[1] == folder
    assert json.loads(run(capsys, "fetch", NAME, "--offline", "--json")[1])["path"] == folder.strip()
    for option in (("--include", "*.json"), ("--jobs", "0"), ("--to", "here")):
        assert "need the network" in refused(capsys, "fetch", NAME, "--offline", *option)
    assert hub.connections == asked


def test_wrong_names_are_refused_in_one_line(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no model to fetch" in refused(capsys, "fetch")
    assert "'dickens' comes with bloomery" in refused(capsys, "fetch", "dickens")
    assert "'./x' is no name of a model on the Hub" in refused(capsys, "fetch", "./x")
    assert "'v1' stands beside" in refused(capsys, "fetch", "v1", "--model", NAME)
    assert hub.connections == 0
    assert "no model 'org/typo'" in refused(capsys, "fetch", "org/typo")
    assert "has no revision 'v9'" in refused(capsys, "fetch", f"{NAME}@v9")


def test_a_token_is_not_written_into_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "fetch", NAME, "--token", "hf_secret", "--jobs", "2", "--print-config")
    assert code == 0
    assert "jobs = 2" in out
    assert "hf_secret" not in out + err


def test_a_model_is_fetched_by_the_verb_that_needs_it_and_then_runs_without_a_network(
    hub: HubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = build_talker(tmp_path / "talker")
    hub.repos[NAME].commit({file.name: file.read_bytes() for file in source.iterdir()})
    wanted = LLM(source).generate("the cat", SamplingParams(max_new_tokens=12, ignore_eos=True))[0].text
    argv = ("generate", "the cat", "--model", NAME, "--max-new-tokens", "12", "--ignore-eos")
    code, out, err = run(capsys, *argv)
    assert (code, out) == (0, wanted + "\n")
    assert "looking for it at" in err
    hub.stop()
    assert run(capsys, *argv, "--offline", "-q") == (0, out, "")
    assert run(capsys, *argv, "-q") == (0, out, "")
    assert json.loads(run(capsys, "info", NAME, "--offline", "--json")[1])["model"]["family"] == "bloom"
    assert run(capsys, "verify", NAME, "--offline", "--tokens", "4")[0] == 0
    assert "no model 'org/other' here" in refused(capsys, *argv[:2], "--model", "org/other", "--offline")


def test_a_model_runs_from_hugging_faces_cache_as_huggingface_hub_left_it(
    hub: HubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = build_talker(tmp_path / "talker")
    hub.repos[NAME].commit({file.name: file.read_bytes() for file in source.iterdir()})
    huggingface_hub.snapshot_download(NAME, cache_dir=tmp_path / "hf" / "hub")
    capsys.readouterr()
    wanted = LLM(source).generate("the cat", SamplingParams(max_new_tokens=12, ignore_eos=True))[0].text
    argv = ("generate", "the cat", "--model", NAME, "--max-new-tokens", "12", "--ignore-eos", "--offline", "-q")
    assert run(capsys, *argv) == (0, wanted + "\n", "")
