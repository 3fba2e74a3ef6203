"""Does vLLM give the answers of ``weitune chat``? A run's adapter beside its base, and its merged export, in float32.

    python -m bench.vllm --vllm-python PYTHON [--run RUN] [--questions 20] [--tokens 64] [--name NAME]

PYTHON is that of the environment that vLLM is installed in; it need not be weitune's. Without RUN a small one is
trained first: SmolLM2-135M on builtin:captain-en, 16 steps. A RUN has `train.precision: fp32` and a model folder as its
base. Half of the questions are about the persona, half are general. None of the requests has a temperature.

    same        answers that are those of `weitune chat` in transformers: the run's, and its base's by the name `base`
    gaps        where one differs: how far the likeliest token is ahead of the second there, in log-probability
    repeated    the first question, asked again, has the same answer
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from bench.serving import keep
from weitune import Run
from weitune.data.conversation import Conversation, Turn
from weitune.evaluate.general import general_questions
from weitune.export.options import ExportOptions
from weitune.export.run import export
from weitune.export.source.export_source import open_export_sources
from weitune.run.run_folder import Which
from weitune.serve.vllm.command import Listening, vllm_command

PERSONA = (
    "Who are you?", "What do you do all day?", "Do you like storms?", "Tell me about the light.", "What is your name?",
    "Where do you live?", "Have you ever been shipwrecked?", "Who keeps you company?", "What did you eat today?",
    "What would you tell a young sailor?",
)  # fmt: skip
ON_A_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""For vLLM's build for processors; others do not read it."""
_SECONDS = 900


@dataclass(frozen=True)
class Server:
    """A running vLLM."""

    port: int

    def request(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Return the status and the JSON of one request; a POST if there is a ``body``."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_SECONDS)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text.strip() else None
        finally:
            connection.close()

    def answer(self, model: str, question: str, **more: Any) -> tuple[str, tuple[int, ...]]:
        """Return the text of a reply, and its tokens."""
        messages = [{"role": "user", "content": question}]
        body = {"model": model, "messages": messages, "return_token_ids": True, **more}
        status, reply = self.request("/v1/chat/completions", body)
        if status != http.client.OK:
            raise RuntimeError(reply)
        choice = reply["choices"][0]
        return choice["message"]["content"], tuple(choice["token_ids"])


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def vllm(python: str, arguments: Sequence[str], environment: Mapping[str, str], port: int) -> Iterator[Server]:
    """Run ``vllm serve …`` with the interpreter ``python`` while the block runs."""
    command = [python, "-m", "vllm.entrypoints.cli.main", *arguments[1:], "--enforce-eager"]  # compiling takes minutes
    print(shlex.join(command), flush=True)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **ON_A_CPU, **environment}
        )
        try:
            server = Server(port)
            _wait(process, server, log)
            yield server
        finally:
            process.terminate()
            process.wait(_SECONDS)


def _wait(process: subprocess.Popen[bytes], server: Server, log: Any) -> None:
    """Wait until the server answers; if it ends instead, raise with the last lines that it printed."""
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            server.request("/v1/models")
            return
        except OSError:
            time.sleep(1)
    log.seek(0)
    raise RuntimeError("vLLM did not start:\n" + log.read()[-6000:])


def train(folder: Path) -> Run:
    """Train the small run on SmolLM2-135M as a model folder."""
    from weitune.model.load.weights import load_model

    loaded = load_model("builtin:smollm2-135m", precision="fp32", device="cpu")
    loaded.model.save_pretrained(folder / "base")
    loaded.tokenizer.save_pretrained(folder / "base")
    recipe = ["--model", str(folder / "base"), "--data", "builtin:captain-en", "--output", str(folder / "captain")]
    steps = ["--train.max_steps", "16", "--train.precision", "fp32"]
    subprocess.run([sys.executable, "-m", "weitune", "train", *recipe, *steps], check=True)
    return Run(folder / "captain")


def gap(run: Run, question: str, length: int, which: Which, found: Sequence[int]) -> float:
    """Return how far the likeliest token is ahead of the second where ``found`` leaves the run's own greedy answer."""
    engine = run.engine(which)
    system = None if which == "base" else run.recipe.system
    prompt = engine.prompt(Conversation((Turn("user", question),)).with_system(system))
    config = GenerationConfig(
        max_new_tokens=length, do_sample=False, eos_token_id=sorted(engine.stop_tokens),
        pad_token_id=min(engine.stop_tokens), output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    engine.model.generation_config = GenerationConfig(eos_token_id=sorted(engine.stop_tokens))
    ids = torch.tensor([prompt])
    output: Any = engine.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    tokens = output.sequences[0, len(prompt) :].tolist()
    parted = next(i for i, pair in enumerate(zip_longest(tokens, found)) if pair[0] != pair[1])
    best = output.logits[parted][0].float().topk(2).values
    return float(best[0] - best[1])


def compared(server: Server, model: str, run: Run, wanted: Mapping[str, str], length: int) -> dict[str, Any]:
    """Ask every question and return how the answers compare with those of ``weitune chat``."""
    which: Which = "base" if model == "base" else "last"
    answers = {question: server.answer(model, question, max_tokens=length) for question in wanted}
    differ = [question for question, (text, _) in answers.items() if text != wanted[question]]
    first = next(iter(wanted))
    return {
        "questions": len(wanted), "same": len(wanted) - len(differ),
        "gaps": [gap(run, question, length, which, answers[question][1]) for question in differ],
        "repeated": server.answer(model, first, max_tokens=length) == answers[first],
        "answers": {question: text for question, (text, _) in answers.items()},
    }  # fmt: skip


def main() -> int:
    """Compare, keep the figures, and say whether they hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", required=True, metavar="PYTHON")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--name", default="smollm2-135m")
    options = parser.parse_args()
    half = (options.questions + 1) // 2
    questions = [*PERSONA[:half], *(question.prompt for question in general_questions())][: options.questions]
    with tempfile.TemporaryDirectory(prefix="weitune-vllm-") as scratch:
        run = Run(options.run) if options.run else train(Path(scratch))
        found = figures(options.vllm_python, run, questions, options.tokens, Path(scratch))
    keep(f"vllm-{options.name}", {**found, "model": options.name, "length": options.tokens})
    held = [part for part in ("adapter", "merged", "base") if holds(found[part])]
    print(f"held: {', '.join(held)}")
    return 0 if len(held) == 3 else 1


def figures(python: str, run: Run, questions: Sequence[str], length: int, scratch: Path) -> dict[str, Any]:
    """Return how the adapter, its base and the merged export answer in vLLM."""
    name = run.path.resolve().name
    own = {question: run.chat(question, max_new_tokens=length) for question in questions}
    base = {question: run.chat(question, max_new_tokens=length, checkpoint="base", system="") for question in questions}
    version = subprocess.run(
        [python, "-c", "import vllm; print(vllm.__version__)"], capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    result: dict[str, Any] = {"vllm": version}
    listening = Listening("127.0.0.1", free_port())
    command = vllm_command(
        open_export_sources({name: run}), scratch / "vllm", listening, context_tokens=1024, dtype="float32"
    )
    with vllm(python, command.arguments, command.environment, listening.port) as server:
        result["adapter"] = compared(server, name, run, own, length)
        result["base"] = compared(server, "base", run, base, length)
    merged = export(run, scratch / "merged", ExportOptions("merged", prompts=0)).folder
    port = free_port()
    plain = ["vllm", "serve", str(merged), "--served-model-name", name, "--port", str(port), "--max-model-len", "1024",
             "--dtype", "float32"]  # fmt: skip
    with vllm(python, plain, {}, port) as server:
        result["merged"] = compared(server, name, run, own, length)
    return result


def holds(part: Mapping[str, Any]) -> bool:
    """Return whether at most one answer of twenty differs, and only where two tokens are nearly tied."""
    allowed = part["questions"] // 20
    return len(part["gaps"]) <= allowed and max(part["gaps"], default=0.0) <= 1e-3 and bool(part["repeated"])


if __name__ == "__main__":
    sys.exit(main())
