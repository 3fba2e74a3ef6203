"""What llama.cpp is asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

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
