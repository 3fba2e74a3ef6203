"""The number formats in a GGUF file, for each kind of tensor."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from weitune.gguf.header import read_header
from weitune.messages import say

_LAYER = re.compile(r"^blk\.\d+\.")


def written_formats(path: Path) -> dict[str, dict[str, int]]:
    """Return for each kind of matrix, such as ``ffn_down``, how many of the file's are in each number format."""
    kinds: dict[str, Counter[str]] = {}
    for name, tensor in read_header(path).tensors.items():
        if len(tensor.shape) > 1:
            kind = _LAYER.sub("", name).removesuffix(".weight")
            kinds.setdefault(kind, Counter())[tensor.type.name] += 1
    return {kind: dict(sorted(counts.items())) for kind, counts in sorted(kinds.items())}


def formats_note(formats: Mapping[str, Mapping[str, int]]) -> str:
    """Return the formats for people, kinds that have the same together."""
    kinds: dict[str, list[str]] = {}
    for kind, counts in formats.items():
        text = next(iter(counts)) if len(counts) == 1 else ", ".join(f"{form} × {n}" for form, n in counts.items())
        kinds.setdefault(text, []).append(kind)
    parts = "; ".join(f"{', '.join(names)}: {text}" for text, names in kinds.items())
    return say("export.written.formats", parts=parts)
