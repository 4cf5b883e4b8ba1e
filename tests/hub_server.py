"""A small Hub on the loopback, for the real huggingface_hub client: models, branches, LFS, and faults on request.

Use :func:`running` as a context. The server implements what huggingface_hub 2.4 uses when HF_HUB_DISABLE_XET is set.
Its repositories are in `hub.repos`, the requests that it received in `hub.requests`. `hub.fault(...)` makes the next
matching requests fail with a status, or cuts them off within their body; `hub.on_request` sees each request before it
is answered.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest

OWNER, TOKEN, READ_ONLY = "ada", "hf_write", "hf_read"
LFS_SUFFIXES = (".safetensors", ".png")


@dataclass(frozen=True)
class Blob:
    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """Return git's name of the file; of an LFS file, git sees the pointer."""
        content = f"version lfs\noid sha256:{self.sha256}\n".encode() if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def content_id(self) -> str:
        """Return the hash with which a client compares its own file."""
        return self.sha256 if self.lfs else self.oid

    def entry(self, path: str) -> dict[str, Any]:
        lfs = {"lfs": {"oid": self.sha256, "size": len(self.data), "pointerSize": 130}} if self.lfs else {}
        return {"type": "file", "path": path, "size": len(self.data), "oid": self.oid, **lfs}


@dataclass
class Repo:
    """A repository; a commit is a snapshot of all files, and `log` has (branch, message, paths added) for each."""

    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=lambda: {"0" * 40: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    log: list[tuple[str, str, list[str]]] = field(default_factory=list)

    def files(self, revision: str = "main") -> dict[str, Blob] | None:
        return self.commits.get(self.branches.get(revision, revision))

    def sha(self, revision: str) -> str:
        return self.branches.get(revision, revision)

    def commit(self, branch: str, message: str, added: dict[str, Blob], deleted: list[str]) -> str:
        files = {path: blob for path, blob in (self.files(branch) or {}).items() if path not in deleted} | added
        sha = secrets.token_hex(20)  # unique as in git, since clients cache by it
        self.commits[sha], self.branches[branch] = files, sha
        self.log.append((branch, message, sorted(added)))
        return sha


@dataclass
class Fault:
    method: str
    path: str
    status: int | None
    times: int


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self._faults: list[Fault] = []
        self.on_request: Callable[[str, str], None] = lambda _method, _path: None

    def fault(self, method: str, path: str, status: int | None, times: int = 1) -> None:
        """Answer the next `times` requests whose path matches with `status`; None cuts the connection instead."""
        self._faults.append(Fault(method, path, status, times))

    def take_fault(self, method: str, path: str) -> Fault | None:
        for fault in self._faults:
            if fault.times and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def asked(self, method: str, pattern: str) -> int:
        """Return how many requests of this kind there were."""
        return sum(verb == method and bool(re.search(pattern, path)) for verb, path in self.requests)


ROUTES: list[tuple[str, re.Pattern[str], str]] = [
    (method, re.compile(pattern + "$"), name)
    for method, pattern, name in (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/models/(?P<id>[^/]+/[^/]+)/preupload/(?P<rev>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<id>[^/]+/[^/]+)/commit/(?P<rev>[^/]+)", "commit"),
        ("POST", r"/api/models/(?P<id>[^/]+/[^/]+)/branch/(?P<rev>[^/]+)", "branch"),
        ("GET", r"/api/models/(?P<id>[^/]+/[^/]+)/tree/(?P<rev>[^/]+)(?P<folder>/.+)?", "tree"),
        ("GET", r"/api/models/(?P<id>[^/]+/[^/]+)/refs", "refs"),
        ("GET", r"/api/models/(?P<id>[^/]+/[^/]+)(/revision/(?P<rev>[^/]+))?", "info"),
        ("POST", r"/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "lfs_put"),
        ("POST", r"/lfs/(?P<oid>\w+)/verify", "lfs_verify"),
        ("GET", r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<file>.+)", "resolve"),
    )
]


class Problem(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message or code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        self.server.on_request(self.command, path)
        fault = self.server.take_fault(self.command, path)
        if fault is not None and fault.status is None:
            self.rfile.read(min(1000, int(self.headers.get("Content-Length", 0))))
            self.close_connection = True
            self.connection.close()
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            if fault is not None:
                raise Problem(fault.status or 500, message="a fault of the test")
            method = "GET" if self.command == "HEAD" else self.command
            for verb, pattern, name in ROUTES:
                if verb == method and (match := pattern.match(path)):
                    getattr(self, name)(**match.groupdict())
                    return
            raise Problem(404, "EntryNotFound", f"no such endpoint: {method} {path}")
        except Problem as problem:
            headers = {"X-Error-Code": problem.code, "X-Error-Message": problem.message}
            self.answer(json.dumps({"error": problem.message}).encode(), problem.status, headers)

    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    def answer(
        self, data: bytes, status: int = 200, headers: dict[str, str] | None = None, size: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            if value:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(data) if size is None else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def reply(self, value: Any, status: int = 200) -> None:
        self.answer(json.dumps(value).encode(), status)

    # -- permissions

    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def may_write(self, repo_id: str) -> None:
        if self.token() not in (TOKEN, READ_ONLY):
            raise Problem(401, message="Invalid credentials in Authorization header")
        if self.token() == READ_ONLY or repo_id.split("/")[0] != OWNER:
            raise Problem(403, message="You don't have the rights to write to this namespace")

    def repo(self, repo_id: str) -> Repo:
        repo = self.server.repos.get(repo_id)
        if repo is None or (repo.private and self.token() not in (TOKEN, READ_ONLY)):
            raise Problem(404 if self.token() else 401, "RepoNotFound", "Repository not found")
        return repo

    def files(self, repo_id: str, revision: str) -> dict[str, Blob]:
        files = self.repo(repo_id).files(revision)
        if files is None:
            raise Problem(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return files

    # -- endpoints

    def whoami(self) -> None:
        if self.token() not in (TOKEN, READ_ONLY):
            raise Problem(401, message="Invalid credentials in Authorization header")
        self.reply({"type": "user", "name": OWNER, "orgs": [], "auth": {"type": "access_token"}})

    def create(self) -> None:
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or OWNER}/{asked['name']}"
        self.may_write(repo_id)
        status = 409 if repo_id in self.server.repos else 200
        if status == 200:
            self.server.repos[repo_id] = Repo(private=asked.get("visibility") == "private")
        self.reply({"url": f"{self.server.url}/{repo_id}"}, status)

    def validate_yaml(self) -> None:
        self.reply({"errors": [], "warnings": []})

    def preupload(self, id: str, rev: str) -> None:
        self.may_write(id)
        there = self.files(id, rev)
        self.reply(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                        "shouldIgnore": False,
                        "oid": there[file["path"]].content_id if file["path"] in there else None,
                    }
                    for file in json.loads(self.body)["files"]
                ]
            }
        )

    def lfs_batch(self, id: str) -> None:
        self.may_write(id)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            href = f"{self.server.url}/lfs/{wanted['oid']}"
            actions = {"actions": {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}}
            objects.append({**wanted, **({} if wanted["oid"] in self.server.lfs else actions)})
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Problem(400, message="the content is not what was announced")
        self.server.lfs[oid] = self.body
        self.answer(b"")

    def lfs_verify(self, oid: str) -> None:
        if oid not in self.server.lfs:
            raise Problem(404, message="no such object")
        self.reply({})

    def commit(self, id: str, rev: str) -> None:
        self.may_write(id)
        self.files(id, rev)
        header, added, deleted = {}, dict[str, Blob](), list[str]()
        for line in filter(None, self.body.split(b"\n")):
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                header = value
            elif item["key"] == "file":
                added[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif item["key"] == "lfsFile":
                added[value["path"]] = Blob(self.server.lfs[value["oid"]], lfs=True)
            else:
                deleted.append(value["path"])
        sha = self.repo(id).commit(rev, header["summary"], added, deleted)
        self.reply({"commitUrl": f"{self.server.url}/{id}/commit/{sha}", "commitOid": sha})

    def branch(self, id: str, rev: str) -> None:
        self.may_write(id)
        repo = self.repo(id)
        if rev in repo.branches:
            raise Problem(409, message="the reference exists already")
        repo.branches[rev] = repo.branches["main"]
        self.reply({})

    def refs(self, id: str) -> None:
        branches = self.repo(id).branches
        self.reply(
            {
                "branches": [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": sha} for b, sha in branches.items()],
                "tags": [],
                "converts": [],
            }
        )

    def info(self, id: str, rev: str | None) -> None:
        files, repo = self.files(id, rev or "main"), self.repo(id)
        siblings = [{"rfilename": path} for path in sorted(files)]
        self.reply(
            {"id": id, "sha": repo.sha(rev or "main"), "private": repo.private, "tags": [], "siblings": siblings}
        )

    def tree(self, id: str, rev: str, folder: str | None) -> None:
        files, prefix = self.files(id, rev), f"{folder.strip('/')}/" if folder else ""
        entries = [blob.entry(path) for path, blob in sorted(files.items()) if path.startswith(prefix)]
        if folder and not entries:
            raise Problem(404, "EntryNotFound", "no such folder")
        self.reply(entries)

    def resolve(self, id: str, rev: str, file: str) -> None:
        blob = self.files(id, rev).get(file)
        sha = self.repo(id).sha(rev)
        if blob is None:
            raise Problem(404, "EntryNotFound", "Entry not found")
        linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))} if blob.lfs else {}
        headers = {"ETag": f'"{blob.content_id}"', "X-Repo-Commit": sha, **linked}
        first = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["", "0"])[1])
        data = blob.data[first:]
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(blob.data) - 1}/{len(blob.data)}"
        self.answer(data, 206 if first else 200, headers)


@contextmanager
def running() -> Iterator[Hub]:
    """Run a Hub that listens on the loopback until the context ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


@contextmanager
def reached(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a Hub that huggingface_hub in this process may ask, although the tests are offline otherwise."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.close_session()  # the client of another test remembers that it is offline
    with running() as hub:
        yield hub
    huggingface_hub.close_session()
