"""Smooth the channels of a model before it is quantized, without changing what it computes.

A quantized matrix has one scale for 32 neighbouring columns, and llama.cpp rounds the activations in the same way: one
large channel costs 31 others their precision. Where channels are scaled by a norm's weight or are the rows of another
matrix, they can be divided by a factor there, and the columns of the matrix that takes them multiplied by it:

    input_layernorm            w_j / s_j      q, k and v     column j * s_j
    post_attention_layernorm   w_j / s_j      gate and up    column j * s_j
    up                         row j / s_j    down           column j * s_j
    the last norm              w_j / s_j      the head, unless it is the embedding too

Factors are powers of two, which change exponents only: computed in float32, the smoothed model gives the same bits as
before. The sizes of channels are measured on dialogues of the run's own data.

The source is SmoothQuant (Xiao et al., arXiv 2211.10438), with its factors |x_j|^a / |w_j|^(1-a). Here |x_j| is the
root mean square, and a is chosen for every 32 columns by an estimate of the error; they may also be left as they are.

A head that is tied to the embedding cannot be smoothed: it is written as F16 where
its rounding alone would cost too much.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gguf.quants import dequantize, quantize
from torch import Tensor

from gguf import GGMLQuantizationType
from weitune.export.measure import Measurement
from weitune.export.source.base_weights import Slot, Weights
from weitune.gguf.types import BLOCK, GgufType
from weitune.progress import Progress

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Types of the models whose channels :func:`channels_of` knows."""
LEVELS: Mapping[GgufType, int] = {"Q8_0": 127, "Q6_K": 32, "Q5_K_M": 16, "Q4_K_M": 8, "Q4_0": 8}
"""The largest magnitude of a weight of a quantized type, in steps of its scale."""
_ACTIVATION_LEVELS = 127
_EXPONENTS = (0.25, 0.5, 0.75, 1.0)
_LARGEST_EXPONENT = 4  # of a factor: the scales are float16, whose range is small
_SMALLEST = (
    1 / 16
)  # of the median of its block: smaller channels count as this size, because other dialogues may enlarge them
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Channels:
    """Activations inside a model: the module that outputs them, and the modules that take them as input."""

    output_of: str
    input_of: tuple[str, ...]


def channels_of(config: Any, *, head_is_tied: bool) -> Iterator[Channels]:
    """Yield the channels of a model of the Llama and Qwen families that can be scaled, in order of computation."""
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}"
        attention, mlp = f"{at}.self_attn", f"{at}.mlp"
        yield Channels(f"{at}.input_layernorm", (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"))
        yield Channels(f"{at}.post_attention_layernorm", (f"{mlp}.gate_proj", f"{mlp}.up_proj"))
        yield Channels(f"{mlp}.up_proj", (f"{mlp}.down_proj",))
    if not head_is_tied:
        yield Channels("model.norm", ("lm_head",))


class SmoothedWeights:
    """Weights with their channels smoothed for a quantized type."""

    def __init__(
        self,
        weights: Weights,
        channels: Sequence[Channels],
        sizes: Mapping[str, Tensor],
        gguf_type: GgufType,
        progress: Progress,
    ) -> None:
        """Read every matrix once to choose the factors; ``sizes`` are those of :func:`measure`."""
        self._weights = weights
        self.factors: dict[str, Tensor] = {}
        """The factors of the columns of a weight, shape (in,)."""
        self._divisors: dict[str, Tensor] = {}
        for done, each in enumerate(channels, 1):
            size = sizes[each.input_of[0]]
            if size.shape[0] % BLOCK == 0:
                matrices = (weights.read(f"{module}.weight", torch.float32) for module in each.input_of)
                levels = LEVELS["Q8_0" if each.input_of == ("lm_head",) else gguf_type]
                factors = smoothing_factors(size, list(matrices), levels)
                self.factors.update((f"{module}.weight", factors) for module in each.input_of)
                self._divisors.update((f"{each.output_of}.{kind}", factors) for kind in ("weight", "bias"))
            progress(done, len(channels))

    @property
    def slots(self) -> Mapping[str, Slot]:
        return self._weights.slots

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        tensor = self._weights.read(name, dtype)
        if name in self._divisors:
            factors = self._divisors[name].to(tensor.dtype)
            tensor = tensor / factors.reshape(-1, *[1] * (tensor.ndim - 1))
        return tensor * self.factors[name].to(tensor.dtype) if name in self.factors else tensor


def head_loss(measured: Measurement, head: Tensor, factors: Tensor | None, progress: Progress) -> float:
    """Return the mean error of the taught tokens' log-probabilities if only ``head`` (V, in) is Q8_0.

    ``factors``, shape (in,), multiply the head's columns and divide its input.
    """
    if head.shape[1] % BLOCK:
        return 0.0  # it cannot be Q8_0
    factors = torch.ones(head.shape[1]) if factors is None else factors
    parts = head.split(_ROWS_AT_ONCE)

    def coarse_rows() -> Iterator[Tensor]:
        for done, rows in enumerate(parts, 1):
            yield _rounded(rows.float() * factors)
            progress(done, len(parts))

    fine = _logprobs(measured.hidden_states, (rows.float() for rows in parts), measured.taught)
    coarse = _logprobs(_rounded(measured.hidden_states / factors), coarse_rows(), measured.taught)
    return float((fine - coarse).abs().mean())


def _logprobs(states: Tensor, head: Iterable[Tensor], tokens: Tensor) -> Tensor:
    """Return the log-probability of ``tokens`` (n,) after ``states`` (n, in); ``head`` gives a few rows at a time."""
    total, chosen = torch.full((len(tokens),), -torch.inf), torch.zeros(len(tokens))
    first = 0
    for rows in head:
        logits = states @ rows.T
        total = torch.logaddexp(total, logits.logsumexp(1))
        here = (tokens >= first) & (tokens < first + len(rows))
        chosen[here] = logits[here, tokens[here] - first]
        first += len(rows)
    return chosen - total


def _rounded(values: Tensor) -> Tensor:
    """Return ``values``, shape (n, in), rounded to Q8_0."""
    stored = quantize(values.numpy(), GGMLQuantizationType.Q8_0)
    return torch.from_numpy(dequantize(stored, GGMLQuantizationType.Q8_0)).reshape(values.shape)


def smoothing_factors(size: Tensor, matrices: Sequence[Tensor], levels: int) -> Tensor:
    """Return powers of two, shape (in,), for channels of the given root mean squares, shape (in,).

    ``matrices``, each of shape (out, in), take the channels as input; they are rounded to ``levels`` steps on either
    side of 0.
    """
    size = _floored(size)
    largest = torch.stack([torch.maximum(matrix.amax(0), -matrix.amin(0)) for matrix in matrices]).amax(0)
    of_channel, of_weight = (values.reshape(-1, BLOCK).log2() for values in (size, _floored(largest)))
    best = torch.zeros(size.shape[0] // BLOCK, BLOCK)
    least = estimated_error(size, matrices, torch.exp2(best).flatten(), levels)
    for a in _EXPONENTS:
        wanted = a * of_channel - (1 - a) * of_weight
        tried = (wanted - wanted.mean(1, keepdim=True)).round().clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
        error = estimated_error(size, matrices, torch.exp2(tried).flatten(), levels)
        best = torch.where((error < least)[:, None], tried, best)
        least = torch.minimum(error, least)
    return torch.exp2(best).flatten()


def estimated_error(size: Tensor, matrices: Sequence[Tensor], factors: Tensor, levels: int) -> Tensor:
    """Return the squared error of the quantized products, up to a constant factor, for every block of columns.

    A block's step is its largest value divided by the number of steps, and rounding errors are a constant fraction of a
    step. So every weight of a column is multiplied by the step of its activations, and every activation by those of its
    weights' blocks.
    """
    values = (size / factors).reshape(-1, BLOCK)  # (in / 32, 32)
    step = (values.amax(1) / _ACTIVATION_LEVELS).square()
    energy = values.square().sum(1)
    error = torch.zeros(values.shape[0])
    for matrix in matrices:
        for rows in matrix.split(_ROWS_AT_ONCE):
            blocks = (rows * factors).unflatten(1, (-1, BLOCK))  # (out, in / 32, 32)
            error += step * blocks.square().sum((0, 2))
            error += energy * (blocks.abs().amax(2) / levels).square().sum(0)
    return error


def _floored(sizes: Tensor) -> Tensor:
    """Return ``sizes``, shape (in,), clamped from below at a fraction of their block's median."""
    blocks = sizes.reshape(-1, BLOCK)
    floor = (blocks.median(1, keepdim=True).values * _SMALLEST).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.maximum(blocks, floor).flatten()
