"""Does a server's memory grow with requests? Resident bytes after every thousand of 10,000, all kinds in turn.

python -m bench.serve_memory [RUN] [--requests 10000]

RUN    a run whose template writes calls; without one a tiny model is made, so that the server's own memory is most
kinds  chats whole and streamed, with tools, with a forced call, kept to a schema of their own, with log-probabilities,
       with template arguments that are refused, completions, responses whole and streamed, and nonsense
grown  resident bytes after the last request over those after the first thousand, less 1
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.serving import Service, keep, service

PARAMETERS = {"type": "object", "properties": {"port": {"enum": ["Brest", "Cork"]}}, "required": ["port"]}
TOOL = {"name": "tides", "description": "Tells the tides.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": TOOL}]
CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
CLIENTS = 4


def requests_of(number: int, model: str) -> tuple[str, Any]:
    """Return path and body of a request; no two are alike."""
    ask = [{"role": "user", "content": f"When is high tide on day {number}?"}]
    chat = {"model": model, "messages": ask, "max_tokens": 8}
    schema = {"enum": [f"high {number}", "low"]}
    form = {"type": "json_schema", "json_schema": {"name": "tide", "schema": schema}}
    answer = {"model": model, "input": f"And on day {number}?", "max_output_tokens": 8}
    kinds: list[tuple[str, Any]] = [
        (CHAT, chat), (CHAT, {**chat, "stream": True}), (CHAT, {**chat, "tools": TOOLS, "stream": bool(number % 4)}),
        (CHAT, {**chat, "tools": TOOLS, "tool_choice": "required", "max_tokens": 60}),
        (CHAT, {**chat, "response_format": form, "max_tokens": 20}), (CHAT, {**chat, "logprobs": True}),
        (CHAT, {**chat, "chat_template_kwargs": {f"unknown_{number}": True}}),
        (TEXT, {"model": model, "prompt": f"Day {number}:", "max_tokens": 8}), (RESPONSES, answer),
        (RESPONSES, {**answer, "stream": True}), (CHAT, {"model": f"model {number}", "messages": number}),
    ]  # fmt: skip
    return kinds[number % len(kinds)]


def asked(server: Service, model: str, first: int, count: int) -> Counter[str]:
    """Send ``count`` requests, a few at a time, and return how many had which status."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        sent = pool.map(lambda number: server.request("POST", *requests_of(number, model)), range(first, first + count))
        return Counter(str(status) for status, _ in sent)


def main() -> None:
    """Measure one server."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--requests", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = given.run or _tiny(Path(folder))
        with service(run, "--slots", str(CLIENTS), "--type", "F32", "--threads", "1") as server:
            statuses: Counter[str] = Counter()
            resident, began = {}, time.monotonic()
            for first in range(0, given.requests, 1000):
                statuses += asked(server, run.resolve().name, first, min(1000, given.requests - first))
                resident[first + 1000] = server.resident_bytes()
                print(json.dumps({"requests": first + 1000, "resident_bytes": resident[first + 1000]}), flush=True)
            keep("serve_memory", {
                "model": "tiny" if given.run is None else str(run), "clients": CLIENTS, "statuses": dict(statuses),
                "resident_bytes": resident, "grown": max(resident.values()) / resident[1000] - 1,
                "seconds": time.monotonic() - began,
            })  # fmt: skip


def _tiny(folder: Path) -> Path:
    """Write a run of a tiny model whose template writes calls, and let the server keep its files there, too."""
    from tests.data.frame import families
    from tests.export.runs import save_run

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    run = save_run(folder / "tiny", system=None)
    (Path(str(run.recipe.model)) / "chat_template.jinja").write_text(families.QWEN25, encoding="utf-8")
    return folder / "tiny"


if __name__ == "__main__":
    main()
