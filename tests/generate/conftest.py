"""One run of a tiny qwen2 on disk, for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import save_tiny_run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return save_tiny_run(folder, checkpoints=(5, 10), system="你是皇帝身边的女人。")
