"""Type checkers know the options of an answer by name and type."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from weitune.generate.sampling import Sampling, SamplingOptions

SNIPPET = """\
from weitune import Run

run = Run("runs/zhenhuan")
run.chat("?", temperature=0.7, top_p=0.9, top_k=5, repetition_penalty=1.1, seed=None, max_new_tokens=8)
run.chat("?", temperatur=0.7)
run.stream_chat("?", max_tokens=8)
run.stream_chat_async("?", seed="1")


async def ask() -> str:
    return await run.chat_async("?", topp=0.5)
"""


def test_the_keywords_are_the_fields_of_sampling() -> None:
    assert get_type_hints(SamplingOptions) == get_type_hints(Sampling)
    assert list(get_type_hints(SamplingOptions)) == [field.name for field in dataclasses.fields(Sampling)]


@pytest.mark.slow
def test_mypy_refuses_names_and_types_that_no_option_has(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--cache-dir", str(tmp_path), str(snippet)]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout
    wrong = [line for line in found.splitlines() if "snippet.py:" in line and ": error:" in line]
    assert [int(line.split("snippet.py:")[1].split(":")[0]) for line in wrong] == [5, 6, 7, 11], found
