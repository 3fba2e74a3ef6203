"""Serve runs with vLLM, which speaks the protocol and loads PEFT adapters itself: the command that starts it.

    vllm serve BASE --enable-lora --lora-modules RUN=ADAPTER … --chat-template …

vLLM has one chat template for all, so runs with different system prompts share it without any; their prompts are then
the clients' to send.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from weitune.errors import InputError, ModelError
from weitune.export.adapter_weights import AdapterWeights
from weitune.export.generation_config import write_generation_config
from weitune.export.tuned import Tuned
from weitune.serve.library import BASE

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM takes for the largest rank."""


@dataclass(frozen=True, slots=True)
class Command:
    """How to start vLLM: arguments, and what goes into its environment to stay off the list of processes."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """Return the command as one would type it, the key left out."""
        hidden = [f"{name}=…" for name in self.environment]
        return " ".join([*hidden, *map(shlex.quote, self.arguments)])

    def run(self) -> None:
        """Become vLLM. Raises InputError if it is not installed."""
        program = shutil.which(self.arguments[0])
        if program is None:
            raise InputError(
                "there is no program 'vllm' here",
                "Install it where weitune is (pip install vllm), print the command with --dry-run to start it "
                "elsewhere, or serve with --engine llama.cpp.",
            )
        os.execve(program, list(self.arguments), {**os.environ, **self.environment})  # noqa: S606


def vllm_command(
    runs: Mapping[str, Tuned], folder: Path, *, host: str, port: int, key: str | None, context_tokens: int
) -> Command:
    """Return the command for ``runs`` on one base; their chat template and stop tokens are written to ``folder``.

    Raises ModelError or InputError if vLLM cannot serve them together.
    """
    opened = list(runs.values())
    first = opened[0]
    systems = {tuned.recipe.system for tuned in opened}
    texts = {tuned.template if len(systems) == 1 else tuned.template_without_system for tuned in opened}
    if len(texts) > 1:
        raise InputError(
            "the runs frame dialogues in different ways, and vLLM has one chat template for all",
            "Serve them by separate servers, or with --engine llama.cpp.",
        )
    notes = [] if len(systems) == 1 else [
        "the runs have different system prompts, and vLLM one template: clients must send the system prompt themselves"
    ]  # fmt: skip
    adapters = {name: _checked(AdapterWeights(tuned.adapter_folder)) for name, tuned in runs.items()}
    rank = max(update.rank for adapter in adapters.values() for update in adapter.updates.values())
    folder.mkdir(parents=True, exist_ok=True)
    template = folder / "chat_template.jinja"
    template.write_text(texts.pop(), encoding="utf-8")
    stops = dict.fromkeys(token for tuned in opened for token in tuned.stop_tokens)
    write_generation_config(folder, first.files, list(stops), first.tokenizer.pad_token_id)
    modules = [
        json.dumps({"name": name, "path": str(adapter.folder.resolve())}) for name, adapter in adapters.items()
    ]  # fmt: skip
    base = first.files.folder / first.files.gguf if first.files.gguf else first.files.folder
    arguments = (
        "vllm", "serve", str(base.resolve()), "--served-model-name", BASE,
        "--host", host, "--port", str(port), "--max-model-len", str(context_tokens),
        "--enable-lora", "--max-loras", str(len(runs)), "--max-lora-rank", str(_rank(rank)),
        "--lora-modules", *modules, "--chat-template", str(template.resolve()),
        "--generation-config", str(folder.resolve()),
    )  # fmt: skip
    return Command(arguments, {"VLLM_API_KEY": key} if key else {}, tuple(notes))


def _checked(adapter: AdapterWeights) -> AdapterWeights:
    if adapter.has_magnitudes:
        raise ModelError(
            "vLLM cannot serve a DoRA adapter beside its base", "Export the run as `merged` and serve that."
        )
    return adapter


def _rank(needed: int) -> int:
    """Return the smallest rank that vLLM takes and that holds ``needed``. Raises ModelError if there is none."""
    found = next((rank for rank in _RANKS if rank >= needed), None)
    if found is None:
        raise ModelError(f"vLLM takes adapters up to rank {_RANKS[-1]}, and one has {needed}", "Export it as `merged`.")
    return found
