"""The command that starts vLLM, which serves the protocol and loads PEFT adapters itself.

    vllm serve BASE --enable-lora --lora-modules RUN=ADAPTER … --chat-template … --middleware weitune_vllm…Entrance

vLLM has one chat template for all models. weitune's contains the framing of every run and that of the base, and a
middleware tells it which model a request names, and refuses other sites' pages and wrong keys (:mod:`.template`,
:mod:`.middleware`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitune.errors import InputError, ModelError
from weitune.export.llama_models import BASE
from weitune.export.source.adapter_weights import AdapterWeights
from weitune.export.source.export_source import ExportSource
from weitune.export.source.generation_config import write_generation_config
from weitune.files.json_files import write_json
from weitune.files.publish import publish
from weitune.messages import say
from weitune.serve.vllm import middleware, place
from weitune.serve.vllm.adapter import checked_adapter, is_rewritten, write_even
from weitune.serve.vllm.template import template_by_model

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for the largest rank."""
_TEMPLATE = "chat_template.jinja"
_MODULE = "weitune_vllm"
"""The package as which vLLM imports the middleware."""
_PATH = "PYTHONPATH"


@dataclass(frozen=True, slots=True)
class Listening:
    """Where vLLM listens, and which requests it accepts."""

    host: str
    port: int
    key: str | None = None
    hosts: tuple[str, ...] = ()
    """Other names under which the server may be asked for."""
    origins: tuple[str, ...] = ()
    """Origins of web pages that may use the server."""
    body_bytes: int = 4 << 20
    """Largest size of a request's body."""


@dataclass(frozen=True, slots=True)
class Command:
    """How to start vLLM: its arguments, and additions to its environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    secrets: Mapping[str, str]
    """Environment variables that are not shown; as arguments they would be in the list of processes."""
    notes: tuple[str, ...]

    def __str__(self) -> str:
        hidden = [f"{name}=…" for name in self.secrets]
        shown = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*hidden, *shown, *map(shlex.quote, self.arguments)])

    def run(self) -> None:
        """Replace this process by vLLM. Raises InputError if it is not installed."""
        program = shutil.which(self.arguments[0])
        if program is None:
            raise InputError("serve.command.not_installed")
        environment = {**os.environ, **self.environment, **self.secrets}
        if os.environ.get(_PATH):
            environment[_PATH] += os.pathsep + os.environ[_PATH]
        os.execve(program, list(self.arguments), environment)  # noqa: S606


def vllm_command(
    runs: Mapping[str, ExportSource],
    cache: Path,
    listening: Listening,
    *,
    context_tokens: int,
    dtype: str | None = None,
) -> Command:
    """Return the command that serves ``runs`` of one base. The files that it names are written below ``cache``.

    ``dtype`` is vLLM's name of a number format; None leaves the choice to vLLM. Raises ModelError if vLLM cannot serve
    the runs, InputError if the files cannot be written.
    """
    first = next(iter(runs.values()))
    adapters = {name: checked_adapter(name, source) for name, source in runs.items()}
    rank = max(update.rank for adapter in adapters.values() for update in adapter.updates.values())
    own = first.base_template
    template = template_by_model({BASE: own, **{name: source.template for name, source in runs.items()}})
    settings = {
        "base": BASE if template != own else None,
        "body_bytes": listening.body_bytes,
        "bound_to": listening.host,
        "hosts": listening.hosts,
        "origins": listening.origins,
    }
    try:
        folder = _written(cache, runs, adapters, template, settings).resolve()
    except OSError as error:
        raise InputError("serve.command.cannot_be_written", folder=cache, reason=error.strerror or error) from None
    modules = [
        json.dumps({"name": name, "path": str(_even_folder(folder, i, adapter).resolve())}, ensure_ascii=False)
        for i, (name, adapter) in enumerate(adapters.items())
    ]
    limit = getattr(first.config.get_text_config(), "max_position_embeddings", None) or context_tokens
    arguments = (
        "vllm", "serve", str(first.files.path.resolve()), *_own_tokenizer(runs), "--served-model-name", BASE,
        "--host", listening.host, "--port", str(listening.port), "--max-model-len", str(min(context_tokens, limit)),
        "--enable-lora", "--max-loras", str(len(runs)), "--max-lora-rank", str(accepted_rank(rank)),
        "--lora-modules", *modules, "--chat-template", str(folder / _TEMPLATE),
        "--chat-template-content-format", "string",  # as in training: templates get strings, not lists of parts
        "--generation-config", str(folder), "--allowed-origins", json.dumps(list(listening.origins)),
        *(["--dtype", dtype] if dtype else []),
        "--middleware", f"{_MODULE}.middleware.{middleware.Entrance.__name__}",
    )  # fmt: skip
    return Command(
        arguments,
        {_PATH: str(folder)},
        {} if listening.key is None else {"VLLM_API_KEY": listening.key},
        tuple(_notes(first)),
    )


def _own_tokenizer(runs: Mapping[str, ExportSource]) -> tuple[str, ...]:
    """Return the option that names the tokenizer, if an adapter has its own.

    Raises ModelError if the runs have different tokenizers, for vLLM has one for all models.
    """
    (first, source), *others = runs.items()
    vocabulary = source.tokenizer.get_vocab() if others else {}
    for name, other in others:
        if other.tokenizer.get_vocab() != vocabulary:
            raise ModelError("serve.command.tokenizers_differ", first=first, name=name)
    all_files = (source.files for source in runs.values())
    folders = (files.tokenizer_folder for files in all_files if files.tokenizer_folder != files.folder)
    return next((("--tokenizer", str(folder.resolve())) for folder in folders), ())


def _notes(source: ExportSource) -> Iterator[str]:
    """Yield what differs from serving with llama.cpp, and what may keep vLLM from starting."""
    end = source.tokenizer.convert_ids_to_tokens(source.framing.end_of_turn)
    yield say("serve.command.control_tokens_in_messages", token=end)
    if source.files.gguf:
        yield say("serve.command.gguf_needs_plugin")


def _written(
    cache: Path,
    runs: Mapping[str, ExportSource],
    adapters: Mapping[str, AdapterWeights],
    template: str,
    settings: Mapping[str, Any],
) -> Path:
    """Write vLLM's files to a folder named after their contents, so that no server overwrites another's files."""
    first = next(iter(runs.values()))
    of_runs = (token for source in runs.values() for token in source.stop_tokens)
    stops = dict.fromkeys([*of_runs, *first.base_framing.stop_tokens])
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".") as scratch:
        partial = Path(scratch) / "partial"
        partial.mkdir()
        (partial / _TEMPLATE).write_text(template, encoding="utf-8", newline="")
        write_generation_config(partial, first.files, list(stops), first.tokenizer.pad_token_id)
        package = partial / _MODULE
        package.mkdir()
        for module in (middleware, place):
            shutil.copy(str(module.__file__), package)
        write_json((package / "middleware").with_suffix(middleware.SETTINGS), settings)
        for i, adapter in enumerate(adapters.values()):
            if is_rewritten(adapter):
                write_even(adapter, _even_folder(partial, i, adapter))
        folder = cache / _digest(partial)
        if not folder.exists():
            publish(partial, folder)
    return folder


def _even_folder(folder: Path, i: int, adapter: AdapterWeights) -> Path:
    """Return the folder of the adapter of run ``i``: its own, or that of the rewritten adapter."""
    return folder / f"adapter-{i}" if is_rewritten(adapter) else adapter.folder


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def accepted_rank(needed: int) -> int:
    """Return the smallest rank, at least ``needed``, that vLLM accepts. Raises ModelError if there is none."""
    accepted = next((rank for rank in _RANKS if rank >= needed), None)
    if accepted is None:
        raise ModelError("serve.command.rank_too_large", most=_RANKS[-1], rank=needed)
    return accepted
