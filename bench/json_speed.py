"""What does keeping to a schema cost? Time per token with and without, in transformers and served, taking turns.

python -m bench.json_speed RUN [--rounds 5] [--tokens 64]

Both sides answer the same question with the same number of tokens: without a schema what would end an answer is ruled
out, and the schema asks for more text than fits. Times include the prompt, which each engine has read before. Figures
are medians over the rounds but the first.

engine   transformers' side, the loop of `weitune chat` (`Engine.stream`)
batch    the same, 8 questions at once (`Engine.answers`)
served   `weitune serve`, Q8_0, one client
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from bench.compare import peak_flops
from bench.serve import QUESTION, conversation
from bench.serving import Service, keep, service
from weitune import Run
from weitune.generate.engine import Engine
from weitune.generate.sampling import Sampling

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 40},
        "days": {
            "type": "array",
            "minItems": 40,
            "items": {
                "type": "object",
                "properties": {"hour": {"type": "integer", "minimum": 0, "maximum": 23}, "what": {"type": "string"}},
                "required": ["hour", "what"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["title", "days"],
    "additionalProperties": False,
}
BATCH = 8


def streamed(engine: Engine, number: int, tokens: int, schema: Any) -> tuple[float, int]:
    """Return the seconds of one answer, and its tokens."""
    began = time.perf_counter()
    stream = engine.stream(conversation(number), Sampling(max_new_tokens=tokens), schema)
    for _ in stream:
        pass
    return time.perf_counter() - began, stream.length_tokens


def together(engine: Engine, number: int, tokens: int, schema: Any) -> tuple[float, int]:
    """Return the seconds of several answers, and their tokens."""
    began = time.perf_counter()
    asked = [conversation(number * BATCH + at) for at in range(BATCH)]
    answers = engine.answers(asked, Sampling(max_new_tokens=tokens), schema=schema)
    return time.perf_counter() - began, sum(len(answer.tokens) for answer in answers)


def served(server: Service, model: str, number: int, tokens: int, options: dict[str, Any]) -> tuple[float, int]:
    """Return the seconds of one answer of the server, and its tokens."""
    ask = [{"role": "user", "content": QUESTION.format(number)}]
    began = time.perf_counter()
    reply = server.chat(model=model, messages=ask, max_tokens=tokens, **options)
    return time.perf_counter() - began, reply["usage"]["completion_tokens"]


def main() -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    run = Run(given.run)
    engine = run.engine()
    stops = sorted(engine.stop_tokens)
    engine.stop_tokens = frozenset()  # answers without a schema go on, too
    form = {"type": "json_schema", "json_schema": {"name": "day", "schema": SCHEMA}}
    free: dict[str, Any] = {"logit_bias": {str(token): -100 for token in stops}}
    seconds: dict[str, list[float]] = {}
    peaks = []
    with service(given.run, "--slots", "1") as server:
        for number in range(given.rounds + 1):
            peaks.append(peak_flops())
            for name, (taken, tokens) in {
                "engine": streamed(engine, number, given.tokens, None),
                "engine_json": streamed(engine, number, given.tokens, SCHEMA),
                "batch": together(engine, number, given.tokens, None),
                "batch_json": together(engine, number, given.tokens, SCHEMA),
                "served": served(server, run.name, number, given.tokens, free),
                "served_json": served(server, run.name, number, given.tokens, {"response_format": form}),
            }.items():
                assert tokens >= given.tokens // 2, f"{name} ended after {tokens} tokens"
                seconds.setdefault(name, []).append(taken / tokens)
    medians = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
    keep("json_speed", {
        "run": run.recipe.model, "tokens": given.tokens, "batch": BATCH, "seconds_per_token": medians,
        "ratios": {name: medians[f"{name}_json"] / medians[name] for name in ("engine", "batch", "served")},
        "all_rounds": seconds, "peak_flops": peaks,
    })  # fmt: skip


if __name__ == "__main__":
    main()
