"""A hub on loopback: as much of Hugging Face's protocol as its own client needs to download and to upload."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_of_this_test"  # noqa: S105  (it opens nothing else)


class LocalHub(ThreadingHTTPServer):
    """Repositories in memory. Whoever writes must show TOKEN.

    Files in ``breaks_off`` end in the middle, every time; those in ``trickles`` come a thousand bytes at a time.
    """

    daemon_threads = True

    def __init__(self) -> None:
        """Listen at a free port of this machine."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.downloaded: list[str] = []
        self.breaks_off: set[str] = set()
        self.trickles: set[str] = set()
        self.large: dict[str, bytes] = {}

    def add(self, repository: str, folder: Path) -> None:
        """Offer the files of ``folder`` and of the folders in it."""
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        self.repositories[repository] = {str(path.relative_to(folder)): path.read_bytes() for path in files}


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Serve while the block runs."""
    with LocalHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name that http.server gives it)
        pass

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(revision|tree)/(\w+))?", path):
            self._about(*found.groups())
        else:
            self._file()

    def do_PUT(self) -> None:
        content = self._body()
        oid = self.path.removeprefix("/large/")
        if hashlib.sha256(content).hexdigest() != oid:
            self._say(400, {"error": "these are other bytes"})
            return
        self.server.large[oid] = content
        self._say(200, {})

    def do_POST(self) -> None:
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._say(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            made = json.loads(body)
            self.server.created.append(made)
            name = f"{made['organization']}/{made['name']}"
            self.server.repositories.setdefault(name, {})
            self._say(200, {"url": f"{self.server.url}/{name}", "name": name})
        elif self.path == "/api/validate-yaml":
            self._say(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [(file["path"], "lfs" if file["path"].endswith(".safetensors") else "regular") for file in files]
            self._say(200, {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes]})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            where = [{"upload": {"href": f"{self.server.url}/large/{item['oid']}"}} for item in objects]
            self._say(200, {"objects": [{**o, "actions": action} for o, action in zip(objects, where, strict=True)]})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._say(404, {"error": f"no such path: {self.path}"})

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        files = self.server.repositories[repository]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        self._say(200, {"commitUrl": f"{self.server.url}/{repository}/commit/{_commit_of(files)}",
                        "commitOid": _commit_of(files)})  # fmt: skip

    def _about(self, repository: str, what: str | None, revision: str | None) -> None:
        files = self.server.repositories.get(repository)
        if files is None:
            self._say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif revision not in (None, "main", _commit_of(files)):
            self._say(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
        elif what == "tree":
            self._say(200, [{"type": "file", "path": path, "size": len(content), "oid": _etag(content)}
                            for path, content in files.items()])  # fmt: skip
        else:
            self._say(200, {"id": repository, "modelId": repository, "sha": _commit_of(files), "tags": [],
                            "siblings": [{"rfilename": path} for path in files],
                            "cardData": {"license": "apache-2.0"}})  # fmt: skip

    def _file(self) -> None:
        found = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/\w+/(.+)", self.path)
        files = self.server.repositories.get(found[1], {}) if found else {}
        if not found or found[2] not in files:
            self._say(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        content = files[found[2]]
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))
        rest = content[int(first[1]) :] if first else content
        self.send_response(206 if len(rest) < len(content) else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", f'"{_etag(content)}"')
        self.send_header("X-Repo-Commit", _commit_of(files))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.server.downloaded.append(found[2])
        if found[2] in self.server.breaks_off:
            self.wfile.write(rest[: len(rest) // 2])
            self.close_connection = True
            return
        if found[2] in self.server.trickles:
            for start in range(0, len(rest), 1000):
                self.wfile.write(rest[start : start + 1000])
                self.wfile.flush()
                time.sleep(0.1)
            return
        self.wfile.write(rest)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _say(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()  # noqa: S324  (what git names a blob by; nothing is secured by it)


def _commit_of(files: dict[str, bytes]) -> str:
    return _etag(json.dumps({path: _etag(content) for path, content in sorted(files.items())}).encode())
