"""The real vLLM answers what weitune answers. Needs WEITUNE_VLLM_PYTHON: the Python of an environment that has vLLM."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.vllm import Server, free_port, gap, vllm
from tests.export.runs import save_adapter, save_run
from weitune import Run
from weitune.export.options import ExportOptions
from weitune.export.run import export
from weitune.export.source.export_source import open_export_sources
from weitune.serve.vllm.command import Listening, vllm_command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("WEITUNE_VLLM_PYTHON" not in os.environ, reason="WEITUNE_VLLM_PYTHON names no Python with vLLM"),
]
QUESTIONS = ("Who are you?", "What is the capital of France?")
TOKENS = 16


@pytest.fixture(scope="module")
def runs(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Two runs of a real model with different system prompts, adapters and kinds of scale."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for seed, (name, system) in enumerate({"captain": "You are a captain.", "keeper": None}.items(), 1):
        found[name] = save_run(folder / name, "llama", model=str(smollm2_folder), system=system)
        patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3.0}} if seed == 1 else {}
        save_adapter(found[name].path / "adapter", smollm2_folder, scale=0.2, seed=seed, **patterns)
    return found


@pytest.fixture(scope="module")
def server(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    listening = Listening("127.0.0.1", free_port(), body_bytes=10_000)
    command = vllm_command(
        open_export_sources(runs), tmp_path_factory.mktemp("vllm"), listening, context_tokens=512, dtype="float32"
    )
    with vllm(os.environ["WEITUNE_VLLM_PYTHON"], command.arguments, command.environment, listening.port) as started:
        yield started


def same(server: Server, model: str, run: Run, question: str, *, base: bool = False) -> bool:
    """Return whether a request without temperature gets the answer of ``weitune chat``, near ties aside."""
    more = {"checkpoint": "base", "system": ""} if base else {}
    text, tokens = server.answer(model, question, max_tokens=TOKENS)
    expected = run.chat(question, max_new_tokens=TOKENS, **more)
    return text == expected or gap(run, question, TOKENS, "base" if base else "last", tokens) <= 1e-3


def test_every_model_answers_as_in_weitune_chat(server: Server, runs: dict[str, Run]) -> None:
    for question in QUESTIONS:
        for name, run in runs.items():
            assert same(server, name, run, question)
        assert same(server, "base", runs["captain"], question, base=True)
        assert len({server.answer(model, question, max_tokens=TOKENS) for model in ("base", *runs)}) == 3


def test_prompts_are_framed_for_the_model_that_is_asked(server: Server, runs: dict[str, Run]) -> None:
    tokenizer = open_export_sources(runs)["captain"].tokenizer
    asked = [{"role": "user", "content": QUESTIONS[0]}]
    own = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    opening = [{"role": "system", "content": "You are a captain."}]
    captain = tokenizer.apply_chat_template(opening + asked, add_generation_prompt=True, return_dict=False)
    chosen = {"chat_template_kwargs": {"weitune_model": "captain"}}
    for body, expected in (
        ({"model": "base"}, own), ({"model": "keeper", **chosen}, own), ({"model": "captain"}, captain), (chosen, own),
    ):  # fmt: skip
        status, reply = server.request("/tokenize", {**body, "messages": asked})
        assert (status, reply["tokens"]) == (200, expected)
    assert server.request("/v1/chat/completions", {"model": "base", "messages": asked * 1000})[0] == 413
    assert server.request("/v1/chat/completions", {"model": "nobody", "messages": asked})[0] == 404


def test_a_merged_export_answers_as_its_run(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["captain"]
    folder = export(run, tmp_path / "merged", ExportOptions("merged", prompts=0)).folder
    port = free_port()
    command = ["vllm", "serve", str(folder), "--served-model-name", "captain", "--port", str(port),
               "--max-model-len", "512", "--dtype", "float32"]  # fmt: skip
    with vllm(os.environ["WEITUNE_VLLM_PYTHON"], command, {}, port) as server:
        for question in QUESTIONS:
            assert same(server, "captain", run, question)
            assert len({server.answer("captain", question, max_tokens=TOKENS)[0] for _ in range(2)}) == 1
