"""A model hub on this machine for tests: a server that speaks the hub's protocol to the real client.

Of the endpoints those that a download and a commit ask for: model information, tree, resolve, whoami, creation, preupload,
large files, commit (huggingface/huggingface_hub, src/huggingface_hub/_commit_api.py and lfs.py).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
COMMIT = hashlib.sha1(b"a commit").hexdigest()
LARGE = 4096
"""Files of more bytes go the way of large files, as binary ones do at the hub."""

WRITES, READS = "Bearer good", "Bearer reads"
USER, ORGANISATION = "you", "your-organisation"


class LocalHub:
    """Repositories by id: file name to content.

    Attributes:
        gated, private: ids of repositories that only the token of `WRITES` sees.
        sizes: what is claimed of a file instead of its size.
        full: whether accounts have no room.
        requests: every request's method and path.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.sizes: dict[str, int] = {}
        self.large: dict[str, bytes] = {}
        self.full = False
        self.requests: list[str] = []
        self.cards: list[Any] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_POST(self) -> None:
                hub.receive(self)

            def do_PUT(self) -> None:
                hub.receive(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def commit_of(self, repo_id: str) -> str:
        """The newest commit."""
        return self.commits.get(repo_id, COMMIT)

    def fetched(self) -> set[str]:
        """Names of the files that were asked for."""
        return {path.rsplit("/", 1)[-1] for path in self.requests if "/resolve/" in path}

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        """A question."""
        path = unquote(urlsplit(request.path).path)
        self.requests.append(path)
        if path == "/api/whoami-v2":
            return self._who(request)
        parts = path.removeprefix("/api/models").strip("/").split("/")
        repo_id, rest = "/".join(parts[:2]), parts[2:]
        files, commit = self.repositories.get(repo_id), self.commit_of(repo_id)
        told = request.headers.get("Authorization") == WRITES
        headers, content = {}, b""
        if files is None or (repo_id in self.private and not told):
            code, headers = 404, {"X-Error-Code": "RepoNotFound"}
        elif repo_id in self.gated and not told:
            code, headers = 403, {"X-Error-Code": "GatedRepo"}
        elif rest and rest[1] not in (commit, "main"):
            code, headers = 404, {"X-Error-Code": "RevisionNotFound"}
        elif not path.startswith("/api/") and "/".join(rest[2:]) not in files:
            code, headers = 404, {"X-Error-Code": "EntryNotFound"}
        elif not path.startswith("/api/"):
            code, content = 200, files["/".join(rest[2:])]
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}
        elif rest[:1] == ["tree"]:
            code, content = (
                200,
                json.dumps([{"type": "file", "path": n, **self._facts(n, t)} for n, t in files.items()]).encode(),
            )
        else:
            siblings = [{"rfilename": name, **self._facts(name, text)} for name, text in files.items()]
            for row in siblings:
                row["blobId"] = row.pop("oid")
            facts = {"id": repo_id, "sha": commit, "siblings": siblings, "private": repo_id in self.private}
            code, content = 200, json.dumps(facts).encode()
        return _send(request, code, content if body else b"", headers, len(content))

    def _facts(self, name: str, text: bytes) -> dict[str, Any]:
        return {"size": self.sizes.get(name, len(text)), "oid": hashlib.sha1(text).hexdigest()}

    def _who(self, request: BaseHTTPRequestHandler) -> None:
        role = {WRITES: "write", READS: "read"}.get(request.headers.get("Authorization", ""))
        if role is None:
            return _send(request, 401, b'{"error": "Invalid credentials"}')
        who = {"name": USER, "orgs": [{"name": ORGANISATION}], "auth": {"accessToken": {"role": role}}}
        return _send(request, 200, json.dumps(who).encode())

    def receive(self, request: BaseHTTPRequestHandler) -> None:
        """Something to keep."""
        path = unquote(urlsplit(request.path).path)
        self.requests.append(path)
        content = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        if request.command == "PUT" and path.startswith("/large/"):
            assert hashlib.sha256(content).hexdigest() == path.removeprefix("/large/")
            self.large[path.removeprefix("/large/")] = content
            _send(request, 200)
            return
        repo_id = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        if path == "/api/validate-yaml":
            self._card(request, json.loads(content)["content"])
        elif request.headers.get("Authorization") != WRITES:
            _send(request, 403, b'{"error": "You have no right to write here"}')
        elif path == "/api/repos/create":
            self._create(request, json.loads(content))
        elif self.full:
            _send(request, 403, b'{"error": "Private repository storage limit reached, please upgrade your plan"}')
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(request, json.loads(content)["objects"])
        elif "/preupload/" in path:
            self._modes(request, json.loads(content)["files"])
        else:
            assert "/commit/" in path, path
            self._commit(request, repo_id, [json.loads(line) for line in content.splitlines()])

    def _card(self, request: BaseHTTPRequestHandler, text: str) -> None:
        """Metadata as the hub's rules have them: what is a list, and that ``other`` names its licence."""
        facts = yaml.safe_load(text.split("---\n")[1])
        self.cards.append(facts)
        faults = [name for name in ("library_name", "license", "pipeline_tag") if not isinstance(facts.get(name), str)]
        faults += ["license_name"] if facts.get("license") == "other" and not facts.get("license_name") else []
        faults += ["tags"] if not all(isinstance(tag, str) for tag in facts.get("tags", [])) else []
        told = [{"message": name, "line": 1} for name in faults]
        _send(request, 400 if faults else 200, json.dumps({"errors": told, "warnings": []}).encode())

    def _create(self, request: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        if repo_id.partition("/")[0] not in (USER, ORGANISATION):
            return _send(request, 403, b'{"error": "You have no right to create a model there"}')
        url = json.dumps({"url": f"{self.address}/{repo_id}"}).encode()
        if repo_id in self.repositories:
            return _send(request, 409, url)
        self.repositories[repo_id] = {".gitattributes": b"*.bin filter=lfs"}
        if asked.get("visibility") == "private" or asked.get("private"):
            self.private.add(repo_id)
        return _send(request, 200, url)

    def _modes(self, request: BaseHTTPRequestHandler, files: list[dict[str, Any]]) -> None:
        modes = [
            {"path": one["path"], "uploadMode": "lfs" if one["size"] > LARGE else "regular", "shouldIgnore": False}
            for one in files
        ]
        _send(request, 200, json.dumps({"files": modes}).encode())

    def _batch(self, request: BaseHTTPRequestHandler, objects: list[dict[str, Any]]) -> None:
        rows = [
            one
            | ({} if one["oid"] in self.large else {"actions": {"upload": {"href": f"{self.address}/large/{one['oid']}"}}})
            for one in objects
        ]
        _send(request, 200, json.dumps({"transfer": "basic", "objects": rows}).encode())

    def _commit(self, request: BaseHTTPRequestHandler, repo_id: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.repositories[repo_id])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.repositories[repo_id] = files
        told = json.dumps(lines) + self.commit_of(repo_id)
        self.commits[repo_id] = hashlib.sha1(told.encode()).hexdigest()
        page = f"{self.address}/{repo_id}/commit/{self.commits[repo_id]}"
        _send(request, 200, json.dumps({"commitUrl": page, "commitOid": self.commits[repo_id]}).encode())


def _send(
    request: BaseHTTPRequestHandler,
    code: int,
    content: bytes = b"",
    headers: dict[str, str] | None = None,
    length: int | None = None,
) -> None:
    request.send_response(code)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(content) if length is None else length))
    request.end_headers()
    request.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """A hub with nothing in it."""
    server = LocalHub()
    yield server
    server.server.shutdown()
    server.server.server_close()


def run(hub: str | LocalHub, home: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python command in a process of its own whose hub is this one and whose cache is ``home``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    endpoint = hub if isinstance(hub, str) else hub.address
    told = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=kept | told | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
