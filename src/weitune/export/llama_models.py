"""Runs prepared for llama.cpp, for chat and serve: the files that it loads, and how each model is framed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from weitune.data.frame.framing import Framing
from weitune.export.cached_base import base_file
from weitune.export.formats.gguf_adapter import write_gguf_adapter
from weitune.export.source.export_source import ExportSource, open_export_sources
from weitune.generate.run import Run
from weitune.gguf.types import GgufType
from weitune.messages import say
from weitune.model.rotation_by_length import short_tokens
from weitune.progress import Stage
from weitune.run.run_folder import Which

BASE = "base"
"""The name of the model without an adapter in requests."""


@dataclass(frozen=True, slots=True)
class LlamaModel:
    """A model that requests can name."""

    name: str
    framing: Framing
    stop_tokens: frozenset[int]
    system: str | None
    """System prompt of requests that have none."""
    adapter: int | None
    """Index of its adapter among the loaded ones; None for the base."""


@dataclass(frozen=True, slots=True)
class LlamaModels:
    """The files that llama.cpp loads, and the models that they make up."""

    base: Path
    adapters: tuple[Path, ...]
    by_name: Mapping[str, LlamaModel]
    context_tokens: int
    """The largest number of tokens of a prompt and its answer together."""
    exact: bool = False
    """Whether the base is in float32, so that attention and its cache should be too."""
    short_tokens: int | None = None
    """With more tokens of context, llama.cpp computes short rows otherwise than training did (LongRoPE)."""


@contextmanager
def llama_models(
    runs: Mapping[str, Run], gguf_type: GgufType, stage: Stage, checkpoint: Which = "last"
) -> Iterator[LlamaModels]:
    """Prepare ``runs``, which share a base, for llama.cpp. Their adapter files are deleted when the block ends.

    Raises InputError if a run or its base cannot be given to llama.cpp.
    """
    sources = open_export_sources(runs, checkpoint)
    first = next(iter(sources.values()))
    base = base_file(first, gguf_type, stage)
    with tempfile.TemporaryDirectory(prefix="weitune-adapters-") as scratch:
        adapters = tuple(Path(scratch) / f"{i}.gguf" for i in range(len(sources)))
        for path, source in zip(adapters, sources.values(), strict=True):
            write_gguf_adapter(path, source, stage(say("export.llama_models.writing_adapters")))
        models = {
            name: LlamaModel(name, source.framing, frozenset(source.stop_tokens), source.recipe.system, i)
            for i, (name, source) in enumerate(sources.items())
        }
        context_tokens = first.config.get_text_config().max_position_embeddings
        by_name = {BASE: _base_model(first), **models}
        yield LlamaModels(
            base, adapters, by_name, context_tokens, exact=gguf_type == "F32", short_tokens=short_tokens(first.config)
        )


def _base_model(source: ExportSource) -> LlamaModel:
    framing = source.base_framing
    return LlamaModel(BASE, framing, frozenset([*framing.stop_tokens, *source.base_stop_tokens]), None, None)
