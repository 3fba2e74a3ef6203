"""What to export and how, and how to combine adapters. Imports nothing that takes time, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from weitune.gguf.types import GgufType

if TYPE_CHECKING:
    import torch

    from weitune.export.source.export_source import ExportSource

Format = Literal["merged", "gguf", "gguf-adapter", "ollama"]
FORMATS: tuple[Format, ...] = get_args(Format)
Method = Literal["linear", "cat", "svd", "ties", "dare"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The options of ``weitune export``."""

    format: Format
    gguf_type: GgufType = "Q8_0"
    dtype: torch.dtype | None = None
    """Number format of ``merged``; None: the base's."""
    prompts: int = 8
    """How many dialogues the export is verified on; with 0 it is not verified."""
    smooth: bool = True
    """Whether the channels of a quantized GGUF file are smoothed first (:mod:`.smoothing`)."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """How adapters are combined."""

    method: Method = "linear"
    weights: Sequence[float] = ()
    """One for each adapter; if there are none, each counts 1 / count."""
    density: float = 0.5
    """Fraction of the entries that ``ties`` and ``dare`` keep."""
    seed: int = 42
    """Determines which entries ``dare`` drops."""


def gguf_name(source: ExportSource, options: ExportOptions) -> str:
    """Return the name of the GGUF file in an export's folder."""
    kind = "adapter" if options.format == "gguf-adapter" else options.gguf_type
    return f"{source.name}-{kind}.gguf"
