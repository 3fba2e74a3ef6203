"""The real tokenizers, and how hard hypothesis tries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "weitune-data", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("weitune-data")

_PROJECT = Path(__file__).parents[2]
SHARED = _PROJECT.parent / "shared"
_MODELS = Path.home() / ".cache" / "weitune" / "test-models"


def _tokenizer(name: str) -> Any:
    """Load the tokenizer of a test model; the model is built when CI asks for it, otherwise the test is skipped."""
    if not (_MODELS / name / "tokenizer.json").is_file():
        script = SHARED / "models" / "build_test_models.py"
        if "CI" not in os.environ:
            pytest.skip(f"build {name} with {script.name} first")
        subprocess.run([sys.executable, str(script), name, str(_MODELS)], check=True)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(_MODELS / name))


@pytest.fixture(scope="session")
def qwen_tokenizer() -> Any:
    return _tokenizer("qwen2.5-0.5b")


@pytest.fixture(scope="session")
def smollm2_tokenizer() -> Any:
    return _tokenizer("smollm2-135m")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the shared data are not here")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared data of one test are never found by another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
