"""The real huggingface_hub against a small Hub of our own: every byte arrives, once, whatever goes wrong on the way."""

import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from bloomery.errors import BloomeryError, CheckpointError, UsageError
from bloomery.hub import fetch as fetching
from bloomery.hub.client import HubClient, Patience
from bloomery.hub.download import Partial
from bloomery.hub.fetch import Result, fetch
from bloomery.hub.resolve import resolve
from hub_server import Fault, HubServer, Repo, connect, git_sha1, running, variables

NAME = "org/tiny"
WEIGHTS = random.Random(0).randbytes(300_000)
FILES = {
    "config.json": b'{"model_type": "none"}',
    "tokenizer.json": b"{}",
    "README.md": b"",
    "model.safetensors": WEIGHTS,
}
AT_ONCE = Patience(tries=3, first=0.0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with running() as server:
        connect(monkeypatch, server, tmp_path)
        server.repos[NAME] = Repo()
        server.repos[NAME].commit(FILES)
        yield server
        huggingface_hub.close_session()


def get(revision: str | None = None, *, token: str | None = None, patience: Patience = AT_ONCE, **options) -> Result:
    return fetch(options.pop("name", NAME), revision, client=HubClient(token, patience), **options)


def cache() -> Path:
    return Path(os.environ["BLOOMERY_CACHE_DIR"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def fetched(folder: Path) -> dict[str, bytes]:
    """What lies there beside our own marker: nothing half-done among it."""
    found = contents(folder)
    assert json.loads(found.pop("fetched.json"))["format"] == 1
    return found


def why(kind: type[BloomeryError], **options) -> str:
    """The one line that a fetch ends with."""
    with pytest.raises(kind) as caught:
        get(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what arrives ---


def test_files_arrive_as_they_are_and_each_byte_once(hub: HubServer, tmp_path: Path) -> None:
    result = get()
    commit = hub.repos[NAME].refs["main"]
    assert result.folder == tmp_path / "cache" / "models" / "org--tiny" / commit
    assert fetched(result.folder) == FILES
    assert hub.sent("model.safetensors") == len(WEIGHTS)
    assert result.moved == result.size == sum(map(len, FILES.values()))


def test_the_marker_says_what_is_there_and_where_it_comes_from(hub: HubServer) -> None:
    marker = json.loads((get().folder / "fetched.json").read_text())
    digests = {file["path"]: (file["size"], file["digest"]) for file in marker["files"]}
    assert digests["model.safetensors"] == (len(WEIGHTS), "sha256:" + hashlib.sha256(WEIGHTS).hexdigest())
    assert digests["config.json"][1] == "git-sha1:" + git_sha1(FILES["config.json"])
    assert (marker["model"], marker["commit"]) == (NAME, hub.repos[NAME].refs["main"])
    assert (marker["source"], marker["license"]) == (f"{hub.hub}/{NAME}", "apache-2.0")


def test_what_is_here_is_not_fetched_again(hub: HubServer) -> None:
    get()
    hub.seen.clear()
    assert get().moved == 0
    assert hub.asked() == [f"hub GET /api/models/{NAME}"]


def test_a_file_that_was_removed_is_fetched_again_alone(hub: HubServer) -> None:
    (get().folder / "tokenizer.json").unlink()
    hub.seen.clear()
    assert fetched(get().folder) == FILES
    assert [one.file for one in hub.seen[1:]] == ["tokenizer.json"]


def test_a_branch_that_moved_is_fetched_but_not_what_it_shares_with_the_commit_before(hub: HubServer) -> None:
    old = get().folder
    new = hub.repos[NAME].commit(FILES | {"README.md": b"new words"})
    hub.seen.clear()
    result = get()
    assert result.folder == old.with_name(new)
    assert fetched(result.folder) == FILES | {"README.md": b"new words"}
    assert [one.file for one in hub.seen[1:]] == ["README.md"]
    assert fetched(old) == FILES


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/1", None])
def test_a_revision_is_what_its_name_points_to(hub: HubServer, revision: str | None) -> None:
    repo = hub.repos[NAME]
    other = {**FILES, "config.json": b"another"}
    commit = repo.commit(other, revision or "main")
    assert fetched(get(revision).folder) == other
    assert get(commit).folder.name == commit


def test_a_server_that_gives_another_commit_than_the_one_asked_for_is_refused(hub: HubServer) -> None:
    hub.repos[NAME].refs["1" * 40] = hub.repos[NAME].refs["main"]
    assert "gives commit" in why(CheckpointError, revision="1" * 40)


@pytest.mark.parametrize("keep", [True, False])
def test_a_renamed_repository_is_found_under_its_old_name(hub: HubServer, keep: bool) -> None:
    hub.moved["old/tiny"] = NAME
    hub.redirects_keep_queries = keep
    assert fetched(get(name="old/tiny").folder) == FILES


def test_many_files_at_once_all_arrive(hub: HubServer) -> None:
    names = [f"model-{number:05}-of-00012.safetensors" for number in range(12)]
    shards = {name: random.Random(name).randbytes(50_000) for name in names}
    index = json.dumps({"weight_map": dict(zip("abcdefghijkl", names, strict=True))}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index, **shards}
    hub.repos[NAME].commit(files)
    assert fetched(get(jobs=5).folder) == files
    assert hub.sent("model.safetensors.index.json") == len(index)


def test_what_was_chosen_at_different_times_adds_up(hub: HubServer) -> None:
    get(include=("config.json",))
    folder = get(include=("tokenizer.json",)).folder
    marked = {file["path"] for file in json.loads((folder / "fetched.json").read_text())["files"]}
    assert marked == set(fetched(folder)) == {"config.json", "tokenizer.json"}


def test_all_files_are_a_model_only_when_a_model_was_asked_for(hub: HubServer) -> None:
    get(include=("*",))
    assert get().moved == 0
    assert fetched(resolve(NAME, offline=True)) == FILES


def test_chosen_files_are_no_model_until_the_others_come(hub: HubServer) -> None:
    result = get(include=("*.json",))
    assert set(fetched(result.folder)) == {"config.json", "tokenizer.json"}
    for name in (NAME, f"{NAME}@{result.listing.sha}"):
        with pytest.raises(UsageError, match="no model"):
            resolve(name, offline=True)
    hub.seen.clear()
    assert fetched(resolve(NAME)) == FILES
    assert {one.file for one in hub.seen[1:]} == {"model.safetensors"}  # README.md is empty: there is nothing to fetch
    assert len(json.loads((result.folder / "fetched.json").read_text())["files"]) == 4


# --- what is cut is continued ---


def test_a_cut_file_is_continued_where_it_was_and_no_byte_comes_twice(hub: HubServer) -> None:
    hub.faults.append(Fault("model.safetensors", cut=100_001))
    assert fetched(get().folder) == FILES
    first, second = hub.bodies("model.safetensors")
    assert (first.range, first.sent) == (None, 100_001)
    assert second.range == "bytes=100001-"
    assert second.headers["if-range"] == f'"cdn-{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert first.sent + second.sent == len(WEIGHTS)


def test_attempts_without_progress_are_counted_and_what_came_is_kept_for_the_next_run(hub: HubServer) -> None:
    hub.faults += [Fault("model.safetensors", cut=7000, times=2), Fault("model.safetensors", status=503, times=9)]
    said = why(CheckpointError)
    assert "14000 of 300000 bytes are kept: run it again to continue" in said
    assert "answer 503, 3 times" in said
    hub.faults.clear()
    assert fetched(get().folder) == FILES
    assert hub.bodies("model.safetensors")[-1].range == "bytes=14000-"
    assert hub.sent("model.safetensors") == len(WEIGHTS)


def test_a_long_file_on_a_bad_line_gets_as_many_attempts_as_it_needs(hub: HubServer) -> None:
    big = random.Random(1).randbytes(9 * 2**20)
    hub.repos[NAME].commit(FILES | {"model.safetensors": big})
    hub.faults.append(Fault("model.safetensors", cut=2**20 + 1, times=8))
    assert fetched(get().folder)["model.safetensors"] == big
    assert hub.sent("model.safetensors") == len(big)


def test_another_etag_starts_the_file_again(hub: HubServer) -> None:
    hub.faults += [
        Fault("model.safetensors", cut=1000, headers={"etag": '"before"'}),
        Fault("model.safetensors", headers={"etag": '"after"'}),
    ]
    assert fetched(get().folder) == FILES
    assert [(one.range, one.status, one.sent) for one in hub.bodies("model.safetensors")] == [
        (None, 200, 1000),
        ("bytes=1000-", 200, 300_000),
    ]


def test_without_an_etag_a_file_is_continued_all_the_same(hub: HubServer) -> None:
    hub.etags = False
    hub.faults.append(Fault("model.safetensors", cut=5000))
    assert fetched(get().folder) == FILES
    last = hub.bodies("model.safetensors")[-1]
    assert (last.range, last.headers.get("if-range")) == ("bytes=5000-", None)


def test_a_weak_etag_is_no_reason_to_start_again(hub: HubServer) -> None:
    hub.etags = False
    hub.faults.append(Fault("model.safetensors", cut=5000, headers={"etag": 'W/"weak"'}))
    assert fetched(get().folder) == FILES
    assert hub.bodies("model.safetensors")[-1].headers.get("if-range") is None


def test_a_part_of_another_content_is_not_continued(hub: HubServer) -> None:
    hub.faults.append(Fault("model.safetensors", cut=7000, times=3))
    why(CheckpointError)
    part = next(cache().rglob("model.safetensors.part"))
    notes = part.with_name(part.name + ".json")
    notes.write_text(notes.read_text().replace("sha256:", "sha256:0"))
    assert fetched(get().folder) == FILES
    assert hub.bodies("model.safetensors")[-1].range is None


def test_a_part_that_is_longer_than_the_file_starts_again(hub: HubServer) -> None:
    hub.faults.append(Fault("model.safetensors", cut=7000, times=3))
    why(CheckpointError)
    with next(cache().rglob("model.safetensors.part")).open("ab") as part:
        part.write(b"x" * len(WEIGHTS))
    assert fetched(get().folder) == FILES


def test_a_complete_part_needs_only_its_name(hub: HubServer) -> None:
    hub.faults.append(Fault("model.safetensors", cut=7000, times=3))
    why(CheckpointError)
    next(cache().rglob("model.safetensors.part")).write_bytes(WEIGHTS)
    hub.seen.clear()
    assert fetched(get().folder) == FILES
    assert hub.bodies("model.safetensors") == []


@pytest.mark.parametrize("told", ["bytes 9-299999/300000", "bytes 7000-8000/9000", "nonsense"])
def test_a_server_that_answers_with_another_range_does_not_spoil_the_file(hub: HubServer, told: str) -> None:
    hub.faults += [
        Fault("model.safetensors", cut=7000),
        Fault("model.safetensors", headers={"content-range": told}, body=b"y" * len(WEIGHTS)),
    ]
    assert fetched(get().folder) == FILES


# --- what is wrong ---


def test_wrong_bytes_are_deleted_and_the_next_run_fetches_them_anew(hub: HubServer) -> None:
    hub.faults.append(Fault("model.safetensors", body=b"x" * len(WEIGHTS)))
    assert "model.safetensors has the wrong content" in why(CheckpointError)
    assert "model.safetensors.part" not in str(list(cache().rglob("*")))
    with pytest.raises(UsageError, match="lacks "):
        resolve(NAME, offline=True)
    assert fetched(get().folder) == FILES


def test_a_wrong_beginning_is_found_though_the_rest_is_right(hub: HubServer) -> None:
    hub.faults.append(Fault("model.safetensors", body=b"x" * len(WEIGHTS), cut=1000))
    assert "wrong content" in why(CheckpointError)
    assert fetched(get().folder) == FILES


@pytest.mark.parametrize("size", [10, len(WEIGHTS) + 1])
def test_a_body_of_another_size_is_not_written(hub: HubServer, size: int) -> None:
    hub.faults.append(Fault("model.safetensors", body=b"x" * size, times=3))
    assert "another size than listed" in why(CheckpointError)
    assert not list(cache().rglob("model.safetensors*"))


def test_a_page_in_place_of_the_file_costs_nothing_of_what_is_here(hub: HubServer) -> None:
    page = Fault("model.safetensors", body=b"<html>please log in</html>", headers={"etag": '"page"'})
    hub.faults += [Fault("model.safetensors", cut=9000), page]
    assert fetched(get().folder) == FILES
    assert hub.bodies("model.safetensors")[-1].range == "bytes=9000-"


def test_an_index_is_checked_before_it_is_believed(hub: HubServer) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode()
    hub.repos[NAME].commit({"config.json": b"{}", "model-1.safetensors": b"x", "model.safetensors.index.json": index})
    hub.faults.append(Fault("model.safetensors.index.json", body=index.replace(b"1", b"2")))
    assert "is not what the Hub lists" in why(CheckpointError)


# --- who is let in ---


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub: HubServer) -> None:
    hub.repos[NAME].private = True
    assert fetched(get(token="hf_good").folder) == FILES
    assert {one.headers.get("authorization") for one in hub.seen if one.host == "hub"} == {"Bearer hf_good"}
    assert {one.headers.get("authorization") for one in hub.seen if one.host == "cdn"} == {None}


def test_the_token_of_the_environment_is_taken(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[NAME].private = True
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert fetched(get().folder) == FILES


def test_each_refusal_names_its_remedy(hub: HubServer) -> None:
    assert "the token was not accepted" in why(UsageError, token="hf_bad")
    assert "no model 'org/typo'" in why(UsageError, name="org/typo")
    assert "--token or HF_TOKEN" in why(UsageError, name="org/typo")
    assert "needs another token" in why(UsageError, name="org/typo", token="hf_good")
    assert "has no revision 'v9'" in why(UsageError, revision="v9")
    assert "has no file that matches --include 'confg.json': did you mean 'config.json'" in why(
        UsageError, include=("confg.json",)
    )
    assert "is no name of a model on the Hub" in why(UsageError, name="a/b/c")
    assert "holds characters that no token has" in why(UsageError, token="hf good\n")
    assert "jobs is 0: give 1 to 64" in why(UsageError, jobs=0)


@pytest.mark.parametrize(("token", "remedy"), [(None, "--token or HF_TOKEN"), ("hf_stranger", "then run it again")])
def test_a_gated_model_says_where_to_accept_its_terms(hub: HubServer, token: str | None, remedy: str) -> None:
    hub.repos[NAME].gated = True
    said = why(UsageError, token=token)
    assert f"accept its terms at {hub.hub}/{NAME}" in said
    assert remedy in said
    assert fetched(get(token="hf_good").folder) == FILES


def test_an_expired_link_to_another_server_is_asked_for_again(hub: HubServer) -> None:
    hub.faults.append(Fault("model.safetensors", status=403))
    assert fetched(get().folder) == FILES


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(hub: HubServer, status: int) -> None:
    hub.faults += [Fault("", status=status), Fault("config.json", status=status, times=2)]
    assert fetched(get().folder) == FILES


def test_waiting_doubles_and_a_server_may_ask_for_more() -> None:
    patience = Patience(first=1.0, longest=60.0)
    assert [patience.pause(n, None) for n in (1, 2, 3, 9)] == [1, 2, 4, 60]
    assert [patience.pause(1, asked) for asked in (0.5, 30.0, 1e9)] == [1, 30, 60]


def test_what_a_server_asks_to_wait_is_waited(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("bloomery.hub.client.time.sleep", waited.append)
    hub.faults.append(Fault("", status=429, headers={"retry-after": "17"}))
    assert fetched(get().folder) == FILES
    assert waited == [17.0]


def test_so_it_is_for_a_file(hub: HubServer, log: list[str]) -> None:
    hub.faults.append(Fault("config.json", status=503, headers={"retry-after": "1"}))
    get()
    assert "config.json: answer 503 after 0 of 22 bytes; again in 1 s" in log


def test_nobody_there_is_said_at_once(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.stop()
    monkeypatch.setattr("bloomery.hub.client.time.sleep", lambda _: pytest.fail("waited"))
    said = why(CheckpointError)
    assert f"{hub.hub} does not answer" in said
    assert "--offline" in said


def test_a_server_that_is_no_hub_is_named(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.append(Fault("", body=b"<html>hello</html>"))
    assert "does not speak as a Hub" in why(CheckpointError)
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    assert "HF_ENDPOINT is 'huggingface.co'" in why(UsageError)


def test_without_sizes_or_digests_nothing_is_fetched(hub: HubServer) -> None:
    listing = {"id": NAME, "sha": "0" * 40, "siblings": [{"rfilename": "config.json"}]}
    hub.faults.append(Fault("", body=json.dumps(listing).encode()))
    assert "does not say size and digest of 'config.json'" in why(CheckpointError)


@pytest.mark.parametrize("sha", ["../../x", "main", None, "A" * 40])
def test_a_commit_that_is_none_makes_no_folder(hub: HubServer, sha: str | None, tmp_path: Path) -> None:
    hub.faults.append(Fault("", body=json.dumps({"id": NAME, "sha": sha, "siblings": []}).encode()))
    assert "gives no commit" in why(CheckpointError)
    assert not (tmp_path / "cache").exists()


# --- where it goes ---


def test_too_little_space_is_said_before_anything_is_asked_for_or_written(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 200_000, 200_000))
    said = why(UsageError)
    assert "needs 300.0 kB" in said
    assert "has 200.0 kB free" in said
    assert "--to or BLOOMERY_CACHE_DIR" in said
    assert not (tmp_path / "cache").exists()
    assert len(hub.seen) == 1


def test_what_is_here_needs_no_space(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.append(Fault("model.safetensors", cut=50_000, times=3))
    why(CheckpointError)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 200_000, 200_000))
    assert fetched(get().folder) == FILES


def test_a_disk_that_fills_up_says_so_and_keeps_what_it_has(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Partial, "take", full)
        assert "No space left on device: make room" in why(CheckpointError)
    assert fetched(get().folder) == FILES


def test_a_folder_of_ones_own(hub: HubServer, tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "tiny"
    hub.faults.append(Fault("model.safetensors", cut=1000, times=3))
    why(CheckpointError, to=mine)
    assert get(to=mine).folder == mine
    assert fetched(mine) == FILES
    assert hub.sent("model.safetensors") == len(WEIGHTS)
    assert get(to=mine).moved == 0
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_holds_something_else_is_left_alone(hub: HubServer, tmp_path: Path) -> None:
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "letter.txt").write_text("mine")
    file.touch()
    assert "holds something that was not fetched" in why(UsageError, to=full)
    assert "is a file" in why(UsageError, to=file)
    mine = tmp_path / "mine"
    get(to=mine)
    hub.repos[NAME].commit(FILES | {"config.json": b"newer"})
    assert f"holds {NAME} at" in why(UsageError, to=mine)
    assert fetched(mine) == FILES
    assert contents(full) == {"letter.txt": b"mine"}


# --- many at once, and killed ---

FETCH = [sys.executable, "-m", "bloomery", "fetch", NAME]


def start(hub: HubServer, home: Path, **more: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "BLOOMERY_"))}
    return subprocess.Popen(
        FETCH,
        env=environment | variables(hub, home) | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_part(home: Path, size: int) -> None:
    """Until so many bytes of the weights are on the disk."""
    for _ in range(600):
        if any(part.stat().st_size == size for part in home.rglob("model.safetensors.part")):
            return
        time.sleep(0.05)
    pytest.fail("the bytes did not arrive")


def test_killed_in_the_middle_and_continued(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.append(Fault("model.safetensors", hold=123_456))
    with start(hub, tmp_path) as process:
        wait_for_part(tmp_path, 123_456)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    hub.go_on.set()
    with pytest.raises(UsageError, match=r"lacks .*model\.safetensors"):
        resolve(NAME, offline=True)
    with start(hub, tmp_path) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert fetched(Path(out.strip())) == FILES
    last = hub.bodies("model.safetensors")[-1]
    assert (last.range, last.sent) == ("bytes=123456-", len(WEIGHTS) - 123_456)


def test_ctrl_c_keeps_what_came_and_ends_at_once(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.append(Fault("model.safetensors", hold=1000))
    with start(hub, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="600") as process:
        wait_for_part(tmp_path, 1000)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=50)  # the server is silent for longer
    assert (process.returncode, out) == (130, "")
    assert "stopped: what is here is kept" in err
    assert "Traceback" not in err
    hub.go_on.set()
    assert fetched(get().folder) == FILES
    assert hub.bodies("model.safetensors")[-1].range == "bytes=1000-"


@pytest.mark.parametrize("left", ["notes", "part", "both"])
def test_what_a_kill_just_before_or_after_the_renaming_leaves_is_cleared_away(hub: HubServer, left: str) -> None:
    folder = get().folder
    (folder / "fetched.json").unlink()
    if left != "part":
        (folder / "model.safetensors.part.json").write_text("{}")
    if left != "notes":
        (folder / "model.safetensors.part").write_bytes(b"x")
    assert get().moved == 0
    assert fetched(folder) == FILES


def test_two_processes_fetch_it_once(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.append(Fault("model.safetensors", hold=1000))
    with start(hub, tmp_path) as first:
        wait_for_part(tmp_path, 1000)
        with start(hub, tmp_path) as second:
            line = ""
            while "another process fetches" not in line:
                line = second.stderr.readline()
                assert line, "the second did not wait"
            hub.go_on.set()
            answers = [process.communicate(timeout=60) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), answers
    folders = {out.strip() for out, _ in answers}
    assert len(folders) == 1
    assert fetched(Path(folders.pop())) == FILES
    assert hub.sent("model.safetensors") == len(WEIGHTS)


def test_the_first_error_ends_the_others(hub: HubServer) -> None:
    hub.faults += [
        Fault("config.json", body=b"x" * len(FILES["config.json"])),
        Fault("model.safetensors", cut=1000, times=100),
    ]
    assert "config.json has the wrong content" in why(CheckpointError, patience=Patience(tries=50, first=200.0))


# --- what is said ---


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({"license": "mit"}, r"licence of org/tiny: mit: read it at http\S+/org/tiny$"),
        ({"license": "bigscience-bloom-rail-1.0"}, r"rail-1\.0 \(its terms bind how the model may be used\)"),
        ({"license": ["mit", "gpl-3.0"]}, r"mit, gpl-3\.0"),
        (
            {"license": "other", "license_name": "own", "license_link": "https://example.org/own"},
            r"own: read it at https://example\.org/own$",
        ),
        ({}, "not stated"),
    ],
)
def test_the_licence_is_said(hub: HubServer, log: list[str], card: dict[str, object], said: str) -> None:
    hub.repos[NAME].card = card
    get()
    assert re.search(said, log[0]), log[0]


def test_elsewhere_than_on_a_terminal_one_line_begins_and_one_ends(hub: HubServer, log: list[str]) -> None:
    folder = get().folder
    said = [line for line in log if not line.startswith("licence")]
    assert said == [
        f"fetching {NAME} at {folder.name[:12]}: 300.0 kB of 300.0 kB, into {folder}",
        f"{NAME} at {folder.name[:12]}: 4 files, 300.0 kB, 300.0 kB of them fetched now",
    ]


def test_a_terminal_sees_a_bar(hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    from bloomery import log

    log.configure()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    hub.faults.append(Fault("model.safetensors", cut=1000))
    get()
    err = capsys.readouterr().err
    assert "━" in err
    assert "expected 300000) after 1000 of 300000 bytes; again in 0 s" in " ".join(err.split())
