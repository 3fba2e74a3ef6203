"""What to export and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from weitune.gguf.types import GgufType

if TYPE_CHECKING:
    import torch

    from weitune.export.source.export_source import ExportSource

Format = Literal["merged", "gguf", "gguf-adapter", "ollama"]
FORMATS: tuple[Format, ...] = get_args(Format)


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


def gguf_name(source: ExportSource, options: ExportOptions) -> str:
    """Return the name of the GGUF file in an export's folder."""
    return (
        f"{source.name}-adapter.gguf" if options.format == "gguf-adapter" else f"{source.name}-{options.gguf_type}.gguf"
    )
