"""Tokens per second of ``weitune serve`` at Q8_0, beside transformers' ``generate`` on the PEFT model in float32.

    python -m bench.serve RUN [--rounds 5] [--tokens 64] [--clients 8]

    plain      the tutorial's way: PeftModel.generate, float32, on all cores
    one        one client of the server
    together   CLIENTS clients at once, in sum

The sides take turns, one question a side and round, so that both see the same machine; every answer has the same number
of tokens (what would end it is ruled out), and times include the prompt. A question is never asked twice of a side, but
all share the system prompt of the run, which the server keeps. Figures are medians over the rounds but the first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import xllamacpp

from bench.compare import peak_flops
from bench.serving import Service, keep, service
from weitune import Run
from weitune.data.conversation import Conversation, Turn
from weitune.export.source.export_source import ExportSource, open_export_source
from weitune.export.verify.outputs import Computing, TransformersModel, open_reference

QUESTION = "第{}个问题：你今天做了什么，见了什么人，心里又在想什么？"


def conversation(number: int) -> Conversation:
    """Return a dialogue with a question of its own."""
    return Conversation((Turn("user", QUESTION.format(number)),))


def plain(model: Any, tuned: ExportSource, number: int, tokens: int) -> float:
    """Return tokens per second of ``generate``."""
    prompt = tuned.framing.prompt(tuned.with_system(conversation(number)))
    ids = torch.tensor([prompt])
    began = time.perf_counter()
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
        eos_token_id=list(tuned.stop_tokens), pad_token_id=tuned.stop_tokens[0],
    )  # fmt: skip
    seconds = time.perf_counter() - began
    assert output.shape[1] == len(prompt) + tokens
    return tokens / seconds


def one(server: Service, tuned: ExportSource, number: int, tokens: int) -> float:
    """Return tokens per second of one client."""
    began = time.perf_counter()
    reply = server.chat(
        model=tuned.name, messages=[{"role": "user", "content": QUESTION.format(number)}], max_tokens=tokens,
        logit_bias={str(token): -100 for token in tuned.stop_tokens},
    )  # fmt: skip
    seconds = time.perf_counter() - began
    assert reply["usage"]["completion_tokens"] == tokens
    return tokens / seconds


def together(server: Service, tuned: ExportSource, first: int, tokens: int, clients: int) -> float:
    """Return tokens per second of all clients in sum."""
    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        list(pool.map(lambda i: one(server, tuned, first + i, tokens), range(clients)))
        return clients * tokens / (time.perf_counter() - began)


def main() -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    tuned = open_export_source(Run(options.run))
    subject: TransformersModel = open_reference(
        tuned, Computing()
    )  # the base's layers with the adapter beside them, as PEFT has it
    rates: dict[str, list[float]] = {"plain": [], "one": [], "together": []}
    peaks = []
    with service(options.run, "--slots", str(options.clients)) as server:
        for number in range(options.rounds + 1):
            peaks.append(peak_flops())
            rates["plain"].append(plain(subject.model, tuned, number, options.tokens))
            rates["one"].append(one(server, tuned, 1000 + number, options.tokens))
            first = 10_000 + number * options.clients
            rates["together"].append(together(server, tuned, first, options.tokens, options.clients))
    medians = {side: statistics.median(found[1:]) for side, found in rates.items()}
    keep("serve", {
        "model": Path(tuned.recipe.model).name, "dtype": str(subject.dtype), "cores": cores, "clients": options.clients,
        "tokens_an_answer": options.tokens, "tokens_per_second": medians, "all_rounds": rates,
        "one_to_plain": medians["one"] / medians["plain"], "together_to_one": medians["together"] / medians["one"],
        "llama_cpp": xllamacpp.get_system_info(), "peak_gflops": [round(peak / 1e9, 1) for peak in peaks],
    })  # fmt: skip


if __name__ == "__main__":
    main()
