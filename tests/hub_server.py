"""A small Hub on 127.0.0.1: listings, files, a CDN on another port, faults on order. Knows nothing of bloomery.

Answers as the Hub does, as far as huggingface_hub and a download by byte ranges ask: the same paths, headers and error
codes. Small files come from the Hub itself, large ones by redirect.
"""

import hashlib
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

LARGE = (".safetensors", ".bin")


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repo:
    """Commits by name, and branches and tags that point to them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=lambda: {"license": "apache-2.0"})
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit on a branch; returns its name."""
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha


@dataclass
class Fault:
    """What goes wrong with the next `times` answers that carry a file (or a listing: "" is the name of all of them)."""

    file: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Close the connection after so many bytes of the body."""
    hold: int | None = None
    """Wait for `HubServer.go_on` after so many bytes of the body."""
    body: bytes | None = None
    """Another content, of the right size or not."""


@dataclass
class Seen:
    """One request: `host` is "hub" or "cdn", `sent` the bytes of the body that go out."""

    host: str
    method: str
    path: str
    headers: dict[str, str]
    status: int
    sent: int

    @property
    def file(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


class HubServer:
    """Both servers, what they hold, what they were asked, and how often somebody connected."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}
        self.redirects_keep_queries = True
        self.tokens = {"hf_good"}
        self.faults: list[Fault] = []
        self.etags = True
        self.seen: list[Seen] = []
        self.connections = 0
        self.go_on = Event()
        self.lock = Lock()
        self.servers = [_Server(self, "hub"), _Server(self, "cdn")]
        # Two names, since huggingface_hub before 2 takes one host for one server, whatever its port.
        ports = [server.server_address[1] for server in self.servers]
        self.hub, self.cdn = f"http://127.0.0.1:{ports[0]}", f"http://localhost:{ports[1]}"

    def start(self) -> None:
        for server in self.servers:
            Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self.go_on.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def bodies(self, file: str) -> list[Seen]:
        """The answers that carried a file's bytes."""
        return [one for one in self.seen if one.file == file and one.status in (200, 206) and one.method == "GET"]

    def sent(self, file: str) -> int:
        return sum(one.sent for one in self.bodies(file))

    def asked(self) -> list[str]:
        """Every request, as "host METHOD path"."""
        return [f"{one.host} {one.method} {one.path}" for one in self.seen]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, state: HubServer, host: str) -> None:
        self.state, self.host = state, host
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.state.lock:
            self.state.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or has enough."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 120
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.state = self.server.state
        path = unquote(urlsplit(self.path).path)
        if self.server.host == "cdn":
            return self._content(path)
        if path.startswith("/api/models/"):
            return self._listing(path.removeprefix("/api/models/"))
        found = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
        if found and found[1] in self.state.moved:
            return self._answer(307, b"", {"location": self.path.replace(found[1], self.state.moved[found[1]])})
        return self._resolve(*found.groups()) if found else self._error(404, "EntryNotFound")

    # --- what it holds ---

    def _open(self, name: str, *, content: bool) -> Repo | None:
        """The repository, or None after an error was sent."""
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        repo = self.state.repos.get(name)
        if token and token not in self.state.tokens | {"hf_stranger"}:
            self._error(401, None, "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and token not in self.state.tokens):
            self._error(404 if token else 401, "RepoNotFound", "Repository not found")
        elif content and repo.gated and token not in self.state.tokens:
            self._error(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted.")
        else:
            return repo
        return None

    def _commit(self, repo: Repo, revision: str) -> str | None:
        sha = repo.refs.get(revision, revision)
        if sha in repo.commits:
            return sha
        self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _tree(self, name: str, revision: str) -> None:
        repo = self._open(name, content=False)
        sha = repo and self._commit(repo, revision)
        if not repo or not sha:
            return None
        rows = []
        for sibling in (self._sibling(file, content, True) for file, content in repo.commits[sha].items()):
            row = {"type": "file", "path": sibling["rfilename"], "size": sibling["size"], "oid": sibling["blobId"]}
            if "lfs" in sibling:
                row["lfs"] = {**sibling["lfs"], "oid": sibling["lfs"]["sha256"]}
            rows.append(row)
        return self._send(200, json.dumps(rows).encode(), {"content-type": "application/json"}, "")

    def _listing(self, path: str) -> None:
        if "/tree/" in path:
            return self._tree(*path.split("/tree/"))
        name, _, revision = path.partition("/revision/")
        if name in self.state.moved:
            query = "?" + urlsplit(self.path).query if self.state.redirects_keep_queries else ""
            return self._answer(307, b"", {"location": f"/api/models/{self.state.moved[name]}{query}"})
        repo = self._open(name, content=False)
        sha = repo and self._commit(repo, revision or "main")
        if not repo or not sha:
            return None
        blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        said = {
            "_id": "0", "id": name, "modelId": name, "sha": sha, "private": repo.private, "tags": [],
            "gated": "auto" if repo.gated else False, "cardData": repo.card,
            "siblings": [self._sibling(file, content, blobs) for file, content in repo.commits[sha].items()],
        }  # fmt: skip
        return self._send(200, json.dumps(said).encode(), {"content-type": "application/json"}, "")

    def _sibling(self, file: str, content: bytes, blobs: bool) -> dict[str, Any]:
        said: dict[str, Any] = {"rfilename": file}
        if blobs:
            said |= {"size": len(content), "blobId": git_sha1(content)}
            if file.endswith(LARGE):
                said["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 135}
                said["blobId"] = git_sha1(b"version https://git-lfs.github.com/spec/v1\n" + sha256(content).encode())
        return said

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repo = self._open(name, content=True)
        sha = repo and self._commit(repo, revision)
        if not repo or not sha:
            return None
        content = repo.commits[sha].get(file)
        if content is None:
            return self._error(404, "EntryNotFound", "Entry not found")
        headers = {"x-repo-commit": sha}
        if not file.endswith(LARGE):
            return self._send(200, content, headers | {"etag": f'"{git_sha1(content)}"'}, file)
        headers |= {"x-linked-etag": f'"{sha256(content)}"', "x-linked-size": str(len(content))}
        where = f"{self.state.cdn}/{sha}//{name}//{file}"
        return self._answer(302, b"", headers | {"location": where, "etag": f'"{git_sha1(where.encode())}"'})

    def _content(self, path: str) -> None:
        sha, name, file = path.removeprefix("/").split("//")
        repo = self.state.repos[name]
        content = repo.commits[sha][file]
        headers = {"etag": f'"cdn-{sha256(content)}"'} if self.state.etags else {}
        return self._send(200, content, headers, file)

    # --- how it answers ---

    def _error(self, status: int, code: str | None, message: str = "") -> None:
        headers = {"x-error-code": code} if code else {}
        self._answer(status, json.dumps({"error": message}).encode(), headers | {"x-error-message": message})

    def _send(self, status: int, content: bytes, headers: dict[str, str], file: str) -> None:
        """A body, or the range of it that was asked for, with what was ordered to go wrong."""
        fault = self._fault(file)
        headers = {"accept-ranges": "bytes"} | headers | fault.headers
        content = content if fault.body is None else fault.body
        if fault.status is not None:
            return self._answer(fault.status, b"", headers)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        if asked and self.headers.get("if-range", headers.get("etag")) == headers.get("etag"):
            first, size = int(asked[1]), len(content)
            if first >= size:
                return self._answer(416, b"", headers | {"content-range": f"bytes */{size}"})
            headers = {"content-range": f"bytes {first}-{size - 1}/{size}"} | headers
            status, content = 206, content[first:]
        return self._answer(status, content, headers, fault)

    def _fault(self, file: str) -> Fault:
        with self.state.lock:
            fault = next((one for one in self.state.faults if one.file == file and one.times > 0), None)
            if fault is None:
                return Fault(file)
            fault.times -= 1
            return fault

    def _answer(self, status: int, content: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
        fault = fault or Fault("")
        limits = [limit for limit in (fault.cut, fault.hold) if limit is not None]
        first = content[: min(limits)] if limits else content
        asked = {name.lower(): value for name, value in self.headers.items()}
        path = unquote(urlsplit(self.path).path)
        seen = Seen(self.server.host, self.command, path, asked, status, len(first) if self.command == "GET" else 0)
        with self.state.lock:
            self.state.seen.append(seen)  # before a client can have its answer
        self.send_response(status)
        for name, value in ({"content-length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(first)
            if fault.hold is not None and self.state.go_on.wait(90):
                seen.sent = len(content)
                self.wfile.write(content[len(first) :])
            elif limits:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_WR)


@contextmanager
def running() -> Iterator[HubServer]:
    server = HubServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


def variables(server: HubServer, home: Path) -> dict[str, str]:
    """The environment of a process that knows no other Hub, has no token, and keeps what it fetches under `home`."""
    return {
        "HF_ENDPOINT": server.hub,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "BLOOMERY_CACHE_DIR": str(home / "cache"),
    }


def connect(monkeypatch: pytest.MonkeyPatch, server: HubServer, home: Path) -> None:
    """As `variables`, for this process, whose huggingface_hub has long read its environment."""
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_OFFLINE", "BLOOMERY_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables(server, home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", server.hub)
    template = server.hub + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "hf" / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "hf" / "stored_tokens"))
