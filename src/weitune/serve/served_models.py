"""What a server offers: a base, and runs on it by name, each with its own framing, system prompt and adapter."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from weitune.data.frame.choose import framing_for
from weitune.data.frame.framing import Framing
from weitune.errors import InputError, RunError
from weitune.export.cached_base import base_file
from weitune.export.formats.gguf_adapter import write_gguf_adapter
from weitune.export.source.chat_template import self_contained_template
from weitune.export.source.export_source import ExportSource, open_export_source
from weitune.generate.run import Run
from weitune.gguf.types import GgufType
from weitune.model.load.fingerprint import base_fingerprints
from weitune.model.load.tokenizer import load_tokenizer
from weitune.progress import Stage
from weitune.recipe.schema import Tokens
from weitune.run.run_folder import Which

BASE = "base"
"""The name by which the model without an adapter is asked for."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a request can name."""

    name: str
    framing: Framing
    stop_tokens: frozenset[int]
    system: str | None
    """System prompt of requests that have none."""
    adapter: int | None
    """Which of the loaded adapters; None: none of them."""


@dataclass(frozen=True, slots=True)
class ServedModels:
    """The files that an engine loads, and the models that it then offers."""

    model: Path
    adapters: tuple[Path, ...]
    offers: Mapping[str, ServedModel]
    context_tokens: int
    """How many tokens the model can read and write together."""
    exact: bool = False
    """Whether the base is in float32, so that attention and its cache should be too."""


def named_runs(arguments: list[str], open_one: Callable[[str], Run] = Run) -> dict[str, Run]:
    """Return runs by name, from ``FOLDER`` (named like the folder) or ``NAME=FOLDER``, each opened by ``open_one``.

    Raises RunError if one is not a run, InputError if a name is not free.
    """
    found: dict[str, Run] = {}
    for argument in arguments:
        name, _, path = argument.rpartition("=") if not Path(argument).exists() else ("", "", argument)
        run = open_one(path)
        name = name or run.name
        if name in found or name == BASE:
            raise InputError(
                "serve.served_models.two_models_would_have", name=name, quote=shlex.quote(f"another-name={path}")
            )
        found[name] = run
    return found


def open_all(runs: Mapping[str, Run], checkpoint: Which = "last") -> dict[str, ExportSource]:
    """Open runs that share a base. Raises RunError if they do not."""
    opened = {name: open_export_source(run, checkpoint) for name, run in runs.items()}
    first, *others = opened
    prints = {name: base_fingerprints(replace(tuned.files, adapter=None)) for name, tuned in opened.items()}
    for name in others:
        if prints[name] != prints[first]:
            raise RunError(
                "serve.served_models.runs_have_different_base",
                first=first,
                name=name,
                model=opened[first].recipe.model,
                model2=opened[name].recipe.model,
            )
    return opened


@contextmanager
def prepared(
    runs: Mapping[str, Run], gguf_type: GgufType, stage: Stage, checkpoint: Which = "last"
) -> Iterator[ServedModels]:
    """Give a library of ``runs`` for llama.cpp; its adapter files are gone when the block ends.

    Raises InputError if a run or its base cannot be given to llama.cpp.
    """
    opened = open_all(runs, checkpoint)
    first = next(iter(opened.values()))
    model = base_file(first, gguf_type, stage)
    with tempfile.TemporaryDirectory(prefix="weitune-adapters-") as scratch:
        adapters = []
        for i, tuned in enumerate(opened.values()):
            adapters.append(Path(scratch) / f"{i}.gguf")
            write_gguf_adapter(adapters[-1], tuned, stage("writing adapters"))
        offers = [
            ServedModel(name, tuned.framing, frozenset(tuned.stop_tokens), tuned.recipe.system, i)
            for i, (name, tuned) in enumerate(opened.items())
        ]
        of_base = _offer_of_base(first)
        limit = first.config.get_text_config().max_position_embeddings
        by_name = {offer.name: offer for offer in [of_base, *offers]}
        yield ServedModels(model, tuple(adapters), by_name, limit, exact=gguf_type == "F32")


def base_framing(tuned: ExportSource) -> Framing:
    """Return how the base frames as its makers meant it: its own chat template, with a run's template arguments."""
    tokenizer = tuned.tokenizer if tuned.files.adapter is None else load_tokenizer(replace(tuned.files, adapter=None))
    return framing_for(tokenizer, Tokens(template_args=tuned.recipe.tokens.template_args))


def base_template(tuned: ExportSource) -> str:
    """Return that framing as a chat template that needs no arguments."""
    framing = base_framing(tuned)
    return self_contained_template(framing, None, str(tuned.tokenizer.convert_ids_to_tokens(framing.end_of_turn)))


def _offer_of_base(tuned: ExportSource) -> ServedModel:
    """Return the base as its makers meant it, without any run's system prompt."""
    framing = base_framing(tuned)
    return ServedModel(BASE, framing, frozenset([*framing.stop_tokens, *tuned.base_stop_tokens]), None, None)
