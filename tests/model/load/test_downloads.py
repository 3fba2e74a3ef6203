"""Bytes are counted while a model comes from ModelScope, or out of a Python package."""

from __future__ import annotations

import hashlib
import sys
import threading
import types
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.limits import HANG_SECONDS
from tests.tiny import save_tiny
from weitune.errors import ModelError
from weitune.model.load import locate as locate_module
from weitune.model.load.locate import Builtin, locate
from weitune.progress import watching_phases

MODEL = b"GGUF" + bytes(3_000_000)


@pytest.fixture
def counted() -> Iterator[list[tuple[int, int | None]]]:
    """Return a list that gets (bytes that have come, bytes in all)."""
    seen: list[tuple[int, int | None]] = []

    def watch(phase: str | None, done: int | None, total: int | None) -> None:
        if phase == "downloading" and done is not None:
            seen.append((done, total))

    with watching_phases(watch):
        yield seen


def test_modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[tuple[int, int | None]]) -> None:
    folder = save_tiny(tmp_path / "model")
    files = {path.name: path.stat().st_size for path in folder.iterdir()}

    def snapshot_download(model: str, *, progress_callbacks: list[Any], **options: Any) -> str:
        """Call back as the client does: from a thread for each file, one of which is begun twice."""

        def download(name: str, size: int) -> None:
            for attempt in (1, 2) if name == "model.safetensors" else (2,):
                callbacks = [make(name, size) for make in progress_callbacks]
                for piece in [size // 3, size // 3] + ([size - 2 * (size // 3)] if attempt == 2 else []):
                    for each in callbacks:
                        each.update(piece)
                for each in callbacks:
                    each.end()

        threads = [threading.Thread(target=download, args=each) for each in files.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return str(folder)

    client = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "modelscope", client)  # type: ignore[arg-type]
    assert locate("someone/tiny", hub="modelscope").folder == folder
    assert counted[-1] == (sum(files.values()), sum(files.values()))
    assert all(done <= (total or 0) for done, total in counted)


def wheel(path: Path) -> Builtin:
    """Write a package with a model in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/model.gguf", MODEL)
        about = "tiny_model-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    digest = hashlib.sha256(MODEL).hexdigest()
    return Builtin("tiny-model", "1.0", "tiny_model/model.gguf", digest, len(MODEL), path.stat().st_size)


class Index(ThreadingHTTPServer):
    """A package index with one package, whose second half it sends when told to."""

    daemon_threads = True

    def __init__(self, package: Path) -> None:
        """Listen at a free port of this machine."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.package, self.more = package, threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: Index

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name that http.server gives it)
        pass

    def do_GET(self) -> None:
        package = self.server.package
        whole = package.read_bytes() if self.path.endswith(".whl") else None
        body = f'<a href="/{package.name}">{package.name}</a>'.encode() if whole is None else whole
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if whole is None else "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if whole is not None:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.server.more.wait(HANG_SECONDS)
            body = body[len(body) // 2 :]
        self.wfile.write(body)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    package = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    monkeypatch.setitem(locate_module.BUILTIN, "tiny", wheel(package))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with Index(package) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.more.set()
        server.shutdown()
        thread.join()


def test_a_package(index: Index, counted: list[tuple[int, int | None]]) -> None:
    size = index.package.stat().st_size

    def watch(phase: str | None, done: int | None, total: int | None) -> None:
        if done:
            index.more.set()

    with watching_phases(watch):
        found = locate("builtin:tiny")
    assert found.path.read_bytes() == MODEL
    assert 0 < next(done for done, _ in counted if done) < size
    assert {total for _, total in counted} == {size}
    assert [path.name for path in found.folder.iterdir()] == ["model.gguf"]


def test_a_stop_ends_pip_and_leaves_nothing(index: Index, tmp_path: Path) -> None:
    def watch(phase: str | None, done: int | None, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    with watching_phases(watch), pytest.raises(KeyboardInterrupt):
        locate("builtin:tiny")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_package_that_is_not_there_is_said(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = locate_module.BUILTIN["tiny"]
    missing = Builtin("tiny-model", "2.0", entry.member, entry.sha256, entry.bytes, entry.package_bytes)
    monkeypatch.setitem(locate_module.BUILTIN, "tiny", missing)
    with pytest.raises(ModelError, match=r"tiny-model==2\.0"):
        locate("builtin:tiny")
