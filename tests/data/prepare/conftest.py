"""A file of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        text = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
        return path

    return write
