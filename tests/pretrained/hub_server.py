"""As much of the Hub as pushing a model and loading it again asks for, on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants as constants
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Keeps what it is given.

    Attributes:
        files: contents of the repository by name.
        large: contents by their SHA-256 of files that travel apart from the commit.
        created: what was asked for in creating the repository.
        calls: method and path of each request.
        cut_after: bytes of a large file after which the connection is cut; None for never.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.cut_after: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub of this test's own, without anything in the cache."""
    with hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


@contextmanager
def hub() -> Iterator[HubServer]:
    """Run the server meanwhile."""
    server = HubServer()
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            name = "me/model"
            self._send({"url": f"{self.server.url}/{name}", "name": name, "id": name})
        elif self.path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            wanted = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in wanted}
            files = [
                {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}
                for path, mode in modes.items()
            ]
            self._send({"files": files, "commitOid": COMMIT})
        elif self.path.endswith("/info/lfs/objects/batch"):
            self._send(
                {"transfer": "basic", "objects": [self._place(o) for o in json.loads(body)["objects"]]}
            )
        elif "/commit/" in self.path:
            self._commit(body)
            url = f"{self.server.url}/me/model/commit/{COMMIT}"
            self._send({"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self._send({}, status=404)

    def _place(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Say where a large file goes."""
        href = f"{self.server.url}/large/{entry['oid']}"
        return {"oid": entry["oid"], "size": entry["size"], "actions": {"upload": {"href": href}}}

    def _commit(self, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.large[value["oid"]]

    def do_PUT(self) -> None:
        body = self._body()
        digest = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == digest
        self.server.large[digest] = body
        self._send({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self._body()
        _, resolve, rest = self.path.partition("/resolve/")
        name = rest.partition("/")[2]
        if resolve and name in self.server.files:
            content = self.server.files[name]
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._send(content, headers=headers)
        elif resolve:
            self._send({}, status=404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        elif self.path.startswith("/api/models/me/model"):
            self._send({"id": "me/model", "modelId": "me/model", "sha": COMMIT, "siblings": [], "tags": []})
        else:
            self._send({}, status=404)

    def _body(self) -> bytes:
        self.server.calls.append(f"{self.command} {self.path}")
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header(
            "Content-Type", "application/json" if data is not content else "application/octet-stream"
        )
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            cut = self.server.cut_after if data in self.server.large.values() else None
            self.wfile.write(data[:cut])
            self.close_connection = cut is not None

    def log_message(self, format: str, *arguments: Any) -> None:
        pass
