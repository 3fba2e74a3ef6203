"""Which number format each tensor of a GGUF file has.

    F32, F16, BF16      every matrix
    Q8_0, Q4_0          every matrix; embedding and output head at least Q8_0, because their error affects every token
    Q6_K                every matrix
    Q5_K_M, Q4_K_M      Q5_K or Q4_K, and Q6_K for the output head, and in half of the layers for values and the
                        feed-forward network's last matrix, as llama.cpp's own files have them

The formats with a K have blocks of 256 columns. A matrix whose rows are no multiple of that gets the next format with
blocks of 32: Q8_0 for Q6_K, Q5_1 for Q5_K, Q5_0 for Q4_K. One whose rows are no multiple of 32 is F16. Vectors are F32,
and so are routers of experts and kernels of convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gguf.constants import GGML_QUANT_SIZES

from gguf import GGMLQuantizationType as Format
from weitune.gguf.types import BLOCK, MIXTURES, GgufType

_ALWAYS_F32 = ("_norm.", "ffn_gate_inp", "ssm_conv1d", "shortconv.conv")
"""Parts of the names of matrices that llama.cpp computes in float32."""
_MAIN: Mapping[GgufType, Format] = {"Q6_K": Format.Q6_K, "Q5_K_M": Format.Q5_K, "Q4_K_M": Format.Q4_K}
_NARROWER_BLOCKS = {Format.Q6_K: Format.Q8_0, Format.Q5_K: Format.Q5_1, Format.Q4_K: Format.Q5_0}
_BLOCK_NUMBER = re.compile(r"blk\.(\d+)\.")
_SENSITIVE = ("attn_v.", "ffn_down.", "ffn_down_exps.", "ffn_down_shexp.")


@dataclass(frozen=True, slots=True)
class Mixture:
    """The formats of a file of type :attr:`wanted`."""

    wanted: GgufType
    layers: int
    head: str
    """The name of the output head: ``token_embd.weight`` if that is the head too."""
    head_type: GgufType = "Q8_0"
    """Of the output head in a Q8_0 or Q4_0 file."""

    def format_of(self, name: str, shape: tuple[int, ...]) -> Format:
        """Return the format of a tensor; its ``shape`` has rows first."""
        if len(shape) == 1 or not name.endswith(".weight") or any(part in name for part in _ALWAYS_F32):
            return Format.F32
        if self.wanted in MIXTURES:
            return _fitting(self._of_matrix(name), shape[-1])
        if not self.wanted.startswith("Q"):
            return Format[self.wanted]
        if shape[-1] % BLOCK:
            return Format.F16
        outer = self.head_type if name == self.head else "Q8_0"
        return Format[outer if name in {"token_embd.weight", "output.weight"} else self.wanted]

    def _of_matrix(self, name: str) -> Format:
        if name == self.head:
            return Format.Q6_K
        main = _MAIN[self.wanted]
        if any(f".{part}" in name for part in _SENSITIVE) and self._has_more_bits(name):
            return Format.Q6_K
        if ".attn_qkv." in name and main is Format.Q4_K:
            return Format.Q5_K
        return Format.Q6_K if ".attn_qkv." in name else main

    def _has_more_bits(self, name: str) -> bool:
        """Return whether a layer gets more bits: the first and last eighth, and each third of the others."""
        match = _BLOCK_NUMBER.match(name)
        layer, eighth = int(match[1]) if match else 0, self.layers // 8
        return layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2


def _fitting(wanted: Format, columns: int) -> Format:
    if columns % GGML_QUANT_SIZES[wanted][0] == 0:
        return wanted
    narrower = _NARROWER_BLOCKS[wanted]
    return narrower if columns % GGML_QUANT_SIZES[narrower][0] == 0 else Format.F16
