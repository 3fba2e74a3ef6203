"""What llama.cpp is asked."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import torch

from tests.export.runs import save_run, silent
from weitune.export.cached_base import base_file
from weitune.export.source.export_source import open_export_source
from weitune.generate import llama_cpp
from weitune.generate.llama_cpp import LlamaCpp, misses_avx512
from weitune.generate.sampling import Sampling


@pytest.mark.parametrize(
    ("sampling", "cached"),
    [
        (Sampling(), True),
        (Sampling(seed=3), True),
        (Sampling(temperature=1), True),
        (Sampling(temperature=1, seed=0), False),
    ],
)
def test_an_answer_drawn_from_a_seed_does_not_depend_on_what_was_asked_before(sampling: Sampling, cached: bool) -> None:
    engine = cast(Any, SimpleNamespace(context_tokens=8, adapters=2))
    body = LlamaCpp.body(engine, [5, 6], sampling, adapter=1)
    assert body["cache_prompt"] is cached
    assert [one["scale"] for one in body["lora"]] == [0.0, 1.0]


_OF_TORCH = """
import os
import torch
from weitune.generate.llama_cpp import end_openmp_threads

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(3)
alone = threads()
product = torch.ones(1 << 20).cos_().sum()
with_team = threads()
end_openmp_threads()
print(with_team - alone, threads() - alone, bool(torch.ones(1 << 20).cos_().sum() == product), threads() - alone)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux shows them")
def test_threads_of_torch_are_gone_before_llama_cpp_starts_its_own() -> None:
    found = subprocess.run([sys.executable, "-c", _OF_TORCH], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["2", "0", "True", "2"]


@pytest.mark.parametrize(
    ("processor", "build", "missed"),
    [
        ("AVX512", "CPU : AVX2 = 1 | F16C = 1 | ", True),
        ("AVX512", "CPU : AVX2 = 1 | AVX512 = 1 | AVX512_VNNI = 1 | ", False),
        ("AVX2", "CPU : AVX2 = 1 | F16C = 1 | ", False),
    ],
)
def test_a_build_that_leaves_avx512_unused_is_known(
    processor: str, build: str, missed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    monkeypatch.setitem(sys.modules, "xllamacpp", SimpleNamespace(get_system_info=lambda: build))
    assert misses_avx512() is missed


@pytest.mark.parametrize(("length", "place"), [(60, "TMPDIR"), (100, "elsewhere"), (240, "elsewhere")])
def test_a_socket_has_a_short_path_however_long_the_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, place: str
) -> None:
    socket = pytest.importorskip("socket")
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("this system has no such sockets")
    base = Path(tempfile.mkdtemp(dir="/tmp"))
    long = base / ("x" * (length - len(str(base)) - 1))
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = llama_cpp._socket_folder()
    assert folder is not None
    path = f"{folder.name}/{llama_cpp._SOCKET}"
    assert path.startswith(str(long)) == (place == "TMPDIR")
    assert Path(folder.name).stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
    folder.cleanup()
    assert not list(long.iterdir())
    shutil.rmtree(base)


def test_where_no_folder_is_short_enough_the_loopback_address_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a key all the same, and for two at once."""
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    long = tmp_path / ("folder-" * 20)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    model = base_file(open_export_source(save_run(tmp_path / "run")), "F32", silent)
    with LlamaCpp(model, context_tokens=64, threads=1) as short_path:
        monkeypatch.setattr(llama_cpp, "_SHORT_FOLDERS", ("/no/such/folder",))
        with LlamaCpp(model, context_tokens=64, threads=1) as one, LlamaCpp(model, context_tokens=64, threads=1) as two:
            assert all(engine._address.startswith("http://127.0.0.1:") for engine in (one, two))
            answers = [
                [chunk["content"] for chunk in engine.complete(engine.body([5, 6], Sampling(max_new_tokens=3)))]
                for engine in (short_path, one, two)
            ]
            assert answers[0] == answers[1] == answers[2]
            stranger = urlsplit(one._address)
            connection = http.client.HTTPConnection(str(stranger.hostname), stranger.port)
            connection.request("POST", "/completion", b'{"prompt": [5]}', {"Content-Type": "application/json"})
            assert connection.getresponse().status == 401
            connection.close()
