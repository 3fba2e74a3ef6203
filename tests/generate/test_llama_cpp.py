"""What llama.cpp is asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from weitune.generate.llama_cpp import LlamaCpp
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
