"""A model's name becomes a folder, or an error that says what there is. What is here causes no network call."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from bloomery.errors import UsageError
from bloomery.hub.resolve import BUILT_IN, parse, resolve
from hub_server import HubServer, Repo, connect, running

NAME = "org/tiny"
INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
SHARDED = {
    "config.json": b"{}",
    "model.safetensors.index.json": INDEX,
    "model-1.safetensors": b"1" * 1000,
    "model-2.safetensors": b"2" * 1000,
}
PLAIN = {"config.json": b"{}", "model.safetensors": b"x" * 1000}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with running() as server:
        connect(monkeypatch, server, tmp_path)
        server.repos[NAME] = Repo()
        server.repos[NAME].commit(PLAIN)
        yield server
        huggingface_hub.close_session()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a connection, or asks for an address, fails the test."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("the network was used")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} - {"fetched.json"}


# --- on this machine ---


def test_built_in_model_is_known_by_name() -> None:
    assert resolve("dickens") == BUILT_IN["dickens"]


def test_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve("~/model") == tmp_path / "model"


def test_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(UsageError, match="is a file: give the folder"):
        resolve(file)


@pytest.mark.parametrize("model", ["dickens", "a folder"])
def test_a_revision_of_what_has_none_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no revisions"):
        resolve("dickens" if model == "dickens" else tmp_path, revision="v1")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dikkens", "did you mean 'dickens'"),
        ("nowhere/at/all", "no model"),
        ("./nothing", "no model"),
        ("../nothing", "no model"),
        ("/nothing", "no model"),
        ("nothing/", "no model"),
        ("no thing", "no model"),
        ("a--b", "no model"),
        ("org/name.git", "no model"),
        ("https://huggingface.co/org/name", "no model"),
        ("org/name@", "is no name of a revision"),
        ("org/name@../..", "is no name of a revision"),
        ("org/name@/etc", "is no name of a revision"),
    ],
)
def test_a_name_that_can_be_nothing_is_refused_in_one_line_and_nobody_is_asked(
    no_network: None, name: str, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(name)
    assert said in str(caught.value)
    assert name.partition("@")[2] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_home_of_nobody_is_no_model() -> None:
    with pytest.raises(UsageError, match="no model '~nobody-of-that-name/model'"):
        resolve("~nobody-of-that-name/model")


def test_a_path_object_is_a_folder_and_never_fetched(hub: HubServer) -> None:
    with pytest.raises(UsageError, match="no model 'org/tiny'"):
        resolve(Path(NAME))
    assert hub.connections == 0


def test_a_folder_stands_before_a_model_of_that_name(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve(NAME) == Path(NAME)
    assert hub.connections == 0


def test_two_revisions_are_one_too_many() -> None:
    assert parse("org/tiny@v1", "v1") == ("org/tiny", "v1")
    with pytest.raises(UsageError, match="do not agree"):
        parse("org/tiny@v1", "v2")


# --- from the Hub ---


@pytest.mark.parametrize("name", [NAME, "tiny2"])
def test_a_model_that_is_not_here_is_fetched_and_then_here(hub: HubServer, name: str) -> None:
    hub.repos["tiny2"] = hub.repos[NAME]
    folder = resolve(name)
    assert names(folder) == set(PLAIN)
    asked = hub.connections
    assert resolve(name) == folder
    assert resolve(f"{name}@main", offline=True) == folder
    assert resolve(name, revision=folder.name) == folder
    assert hub.connections == asked


def test_a_branch_stays_what_it_was_when_it_was_fetched(hub: HubServer) -> None:
    folder = resolve(NAME)
    hub.repos[NAME].commit(PLAIN | {"config.json": b"newer"})
    asked = hub.connections
    assert resolve(NAME) == folder
    assert hub.connections == asked


def test_revisions_live_side_by_side(hub: HubServer) -> None:
    hub.repos[NAME].commit(PLAIN | {"config.json": b"newer"}, "v2/beta")
    old, new = resolve(NAME), resolve(f"{NAME}@v2/beta")
    assert [(folder / "config.json").read_bytes() for folder in (old, new)] == [b"{}", b"newer"]
    assert resolve(NAME, revision="v2/beta", offline=True) == new
    assert resolve(NAME, offline=True) == old


def test_a_token_reaches_the_hub(hub: HubServer) -> None:
    hub.repos[NAME].private = True
    with pytest.raises(UsageError, match="needs a token"):
        resolve(NAME)
    assert names(resolve(NAME, token="hf_good")) == set(PLAIN)


def test_what_the_name_was_looked_up_as_is_said(hub: HubServer, log: list[str]) -> None:
    resolve(NAME)
    assert log[0] == f"no folder '{NAME}' here: looking for it at {hub.hub}"


# --- from Hugging Face's own cache, which huggingface_hub itself has filled ---


@pytest.mark.parametrize("files", [PLAIN, SHARDED], ids=["single", "sharded"])
def test_a_model_in_hugging_faces_cache_is_found_there(hub: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.repos[NAME].commit(files)
    theirs = Path(huggingface_hub.snapshot_download(NAME, cache_dir=tmp_path / "hf" / "hub"))
    asked = hub.connections
    assert resolve(NAME) == theirs
    assert resolve(f"{NAME}@{theirs.name}", offline=True) == theirs
    assert hub.connections == asked
    assert not (tmp_path / "cache").exists()


def test_what_hugging_faces_cache_holds_only_in_part_is_fetched(hub: HubServer, tmp_path: Path) -> None:
    hub.repos[NAME].commit(SHARDED)
    cache = tmp_path / "hf" / "hub"
    huggingface_hub.snapshot_download(NAME, cache_dir=cache, ignore_patterns=["model-2*"])
    with pytest.raises(UsageError, match=r"lacks model-2\.safetensors"):
        resolve(NAME, offline=True)
    assert names(resolve(NAME)) == set(SHARDED)


def test_fetching_what_hugging_faces_cache_has_fetches_nothing(hub: HubServer, tmp_path: Path) -> None:
    theirs = Path(huggingface_hub.snapshot_download(NAME, cache_dir=tmp_path / "hf" / "hub"))
    from bloomery.hub.client import HubClient
    from bloomery.hub.fetch import fetch

    hub.seen.clear()
    result = fetch(NAME, client=HubClient())
    assert (result.folder, result.moved) == (theirs, 0)
    assert hub.asked() == [f"hub GET /api/models/{NAME}"]
    assert resolve(NAME, offline=True) == theirs


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
def test_hugging_faces_cache_is_looked_for_where_its_variables_say(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    theirs = Path(huggingface_hub.snapshot_download(NAME, cache_dir=tmp_path / "elsewhere"))
    monkeypatch.setenv("ELSE", str(tmp_path))
    monkeypatch.setenv(variable, "$ELSE/elsewhere")
    assert resolve(NAME, offline=True) == theirs


# --- offline ---


@pytest.mark.parametrize("how", ["--offline", "BLOOMERY_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_sends_nothing_and_says_what_is_missing_and_how_to_get_it(
    hub: HubServer, no_network: None, how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if how != "--offline":
        monkeypatch.setenv(how, "1")
    with pytest.raises(UsageError) as caught:
        resolve(f"{NAME}@v1", offline=how == "--offline")
    assert str(caught.value) == (
        f"no model '{NAME}@v1' here (neither {tmp_path}/cache/models nor {tmp_path}/hf/hub has it), "
        f"and {how} forbids the network: run 'bloomery fetch {NAME}@v1' without it"
    )
    assert hub.connections == 0


def test_offline_uses_what_is_here(hub: HubServer, request: pytest.FixtureRequest) -> None:
    folder = resolve(NAME)
    request.getfixturevalue("no_network")
    assert resolve(NAME, offline=True) == folder


def test_a_copy_that_has_lost_a_file_is_not_taken_for_whole(hub: HubServer) -> None:
    folder = resolve(NAME)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"lacks model\.safetensors"):
        resolve(NAME, offline=True)
    assert resolve(NAME) == folder
    assert names(folder) == set(PLAIN)


@pytest.mark.parametrize("marker", ["", "[]", "{}", '{"complete": true, "files": [{"path": "../x"}]}'])
def test_a_damaged_marker_is_no_marker(hub: HubServer, marker: str) -> None:
    folder = resolve(NAME)
    (folder / "fetched.json").write_text(marker)
    with pytest.raises(UsageError, match="no model"):
        resolve(NAME, offline=True)
    asked = len(hub.seen)
    assert resolve(NAME) == folder
    assert len(hub.seen) == asked + 1  # the listing: the files are there


def test_finding_what_is_here_imports_no_http_library() -> None:
    look = (
        "import sys, bloomery.hub.resolve as hub; hub.resolve('dickens')\n"
        "print(*{'huggingface_hub', 'httpx', 'httpx2', 'requests', 'cyclopts', 'rich', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
