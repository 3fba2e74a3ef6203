"""What the tests of faults share: folders in memory, no waiting for a disk, and one run that nothing disturbed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.runs import Inputs, make_inputs

_MEMORY = Path("/dev/shm")  # noqa: S108  (a folder of its own is made there)


@pytest.fixture(scope="session")
def _memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on a file system in memory, where there is one: thousands of small files would wear a disk."""
    if not os.access(_MEMORY, os.W_OK):
        yield tmp_path_factory.mktemp("faults")
        return
    with tempfile.TemporaryDirectory(dir=_MEMORY, prefix="weitune-faults-") as folder:
        yield Path(folder)


@pytest.fixture
def tmp_path(_memory: Path) -> Iterator[Path]:
    """An empty folder for one test."""
    with tempfile.TemporaryDirectory(dir=_memory) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fsync return at once: the fault layer counts it and knows what it made certain."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def inputs(_memory: Path) -> Iterator[Inputs]:
    """A tiny model and its data, and a run over them that nothing disturbed."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model's layers are over before a second one has woken up
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(_memory / "cache"))
        yield make_inputs(_memory / "inputs")
    torch.set_num_threads(threads)
