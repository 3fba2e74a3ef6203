"""The number formats of GGUF files that weitune writes. Imports nothing, so that options can list them."""

from __future__ import annotations

from typing import Literal, get_args

GgufType = Literal["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
GGUF_TYPES: tuple[GgufType, ...] = get_args(GgufType)
MIXTURES: tuple[GgufType, ...] = ("Q6_K", "Q5_K_M", "Q4_K_M")
"""Types in which matrices have several formats of llama.cpp's own, which only llama.cpp can quantize to."""
BLOCK = 32
"""Columns that share a scale in Q8_0 and Q4_0."""
