"""Which number format each tensor of a GGUF file has.

    F32, F16, BF16      every matrix
    Q8_0, Q4_0          every matrix; embedding and output head at least Q8_0, because their error affects every token
    Q6_K                every matrix
    Q5_K_M, Q4_K_M      Q5_K or Q4_K, and Q6_K for the output head, and in half of the layers for values and the
                        feed-forward network's last matrix

The last two rows are the rules of llama.cpp's own quantizer (``src/llama-quant.cpp``), and so is what follows. It has
exceptions: keys and values of a model of 8 experts are Q8_0, and outputs of its attention Q5_K in a Q4_K_M file; values
of a 70B model are Q5_K at least.

The formats with a K have blocks of 256 columns. A matrix whose rows are no multiple of that gets a format with blocks
of 32: Q8_0 for Q6_K, Q5_0 for Q5_K and Q4_K. (llama.cpp takes Q5_1 for Q5_K. In products with it, it rounds sums of
inputs to 16 bits, which large channels spoil.) One whose rows are no multiple of 32 is F16. Vectors are F32, and so are
routers of experts and kernels of convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from gguf.constants import GGML_QUANT_SIZES

from gguf import GGMLQuantizationType as Format
from weitune.gguf.types import BLOCK, MIXTURES, GgufType

_ALWAYS_F32 = ("_norm.", "ffn_gate_inp", "ssm_conv1d", "shortconv.conv")
"""Parts of the names of matrices that llama.cpp computes in float32."""
_MAIN: Mapping[GgufType, Format] = {"Q6_K": Format.Q6_K, "Q5_K_M": Format.Q5_K, "Q4_K_M": Format.Q4_K}
_NARROWER_BLOCKS = {Format.Q6_K: Format.Q8_0, Format.Q5_K: Format.Q5_0, Format.Q4_K: Format.Q5_0}
_BLOCK_NUMBER = re.compile(r"blk\.(\d+)\.")
_VALUES = (".attn_v.", ".attn_qkv.", ".attn_kv_b.")
_LAST_OF_FEED_FORWARD = (".ffn_down.", ".ffn_down_exps.", ".ffn_down_shexp.")


@dataclass(frozen=True, slots=True)
class Mixture:
    """The formats of a file of type :attr:`wanted`."""

    wanted: GgufType
    layers: int
    head: str
    """The name of the output head: ``token_embd.weight`` if that is the head too."""
    head_type: GgufType = "Q8_0"
    """Of the output head in a Q8_0 or Q4_0 file."""
    experts: int = 0
    """Of a layer, those that every token goes to not counted."""
    is_70b: bool = False
    """Whether llama.cpp takes the model for one of 70B parameters, by its 80 layers."""
    layers_with_values: tuple[int, ...] = ()

    def over(self, names: Iterable[str]) -> Mixture:
        """Return the mixture of a file that has tensors of these ``names``: some layers may have no attention."""
        layers = {_layer(name) for name in names if _has(name, _VALUES)}
        return replace(self, layers_with_values=tuple(sorted(layers)))

    def format_of(self, name: str, shape: tuple[int, ...]) -> Format:
        """Return the format of a tensor; its ``shape`` has rows first."""
        if len(shape) == 1 or not name.endswith(".weight") or _has(name, _ALWAYS_F32):
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
        main = _MAIN[self.wanted]
        at_least_5 = Format.Q5_K if main is Format.Q4_K else main
        if name == self.head or (_has(name, _LAST_OF_FEED_FORWARD) and _has_more_bits(_layer(name), self.layers)):
            return Format.Q6_K
        if self.experts == 8 and _has(name, (*_VALUES, ".attn_k.")):
            return Format.Q8_0
        if _has(name, _VALUES):
            place, count = self.layers_with_values.index(_layer(name)), len(self.layers_with_values)
            return Format.Q6_K if _has_more_bits(place, count) else at_least_5 if self.is_70b else main
        return at_least_5 if self.experts == 8 and ".attn_output." in name else main


def _has(name: str, parts: Iterable[str]) -> bool:
    return any(part in name for part in parts)


def _layer(name: str) -> int:
    match = _BLOCK_NUMBER.match(name)
    return int(match[1]) if match else 0


def _has_more_bits(place: int, count: int) -> bool:
    """Return whether one of ``count`` layers gets more bits: the first and last eighth, each third of the others."""
    eighth = count // 8
    return place < eighth or place >= 7 * count // 8 or (place - eighth) % 3 == 2


def _fitting(wanted: Format, columns: int) -> Format:
    if columns % GGML_QUANT_SIZES[wanted][0] == 0:
        return wanted
    narrower = _NARROWER_BLOCKS.get(wanted, Format.F16)
    return narrower if columns % GGML_QUANT_SIZES[narrower][0] == 0 else Format.F16
