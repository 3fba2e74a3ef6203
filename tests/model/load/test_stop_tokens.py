"""Where a base model ends an answer by itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weitune.errors import ModelError
from weitune.model.load.config import stored_stop_tokens
from weitune.model.load.locate import ModelFiles


class Config(SimpleNamespace):
    """A configuration that may wrap that of a text model."""

    def get_text_config(self) -> Any:
        return getattr(self, "text_config", self)


@pytest.mark.parametrize(
    ("shipped", "config", "stops"),
    [
        ({"eos_token_id": [1, 106]}, Config(eos_token_id=7), [1, 106]),
        ({"eos_token_id": 5}, Config(text_config=Config(eos_token_id=7)), [5]),
        ({"eos_token_id": 5}, Config(), [5]),
        ({}, Config(eos_token_id=7), [7]),
        (None, Config(eos_token_id=[7, 8]), [7, 8]),
        (None, Config(text_config=Config(eos_token_id=7)), [7]),
        (None, Config(eos_token_id=[1, 106], text_config=Config(eos_token_id=1)), [1, 106]),
        (None, Config(eos_token_id=None, text_config=Config(eos_token_id=0)), [0]),
        (None, Config(text_config=Config()), []),
    ],
)
def test_stop_tokens_of_flat_and_nested_configurations(
    shipped: dict[str, Any] | None, config: Config, stops: list[int], tmp_path: Path
) -> None:
    if shipped is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(shipped))
    assert list(stored_stop_tokens(ModelFiles(tmp_path), config)) == stops


@pytest.mark.parametrize("text", ['{"eos_token_id": 1', "[1, 2]"])
def test_a_broken_generation_config_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=str(path)):
        stored_stop_tokens(ModelFiles(tmp_path), Config(eos_token_id=1))
