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
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from gguf.quants import dequantize, quantize
from torch import Tensor

from gguf import GGMLQuantizationType
from weitune.errors import InputError
from weitune.export.source.base_weights import Slot, Weights
from weitune.export.source.export_source import ExportSource
from weitune.export.verify.outputs import open_reference
from weitune.export.verify.prompts import VerificationPrompt, choose_prompts
from weitune.export.verify.rounding import choose_computing
from weitune.gguf.types import BLOCK, GgufType
from weitune.messages import say
from weitune.progress import Progress, Stage

LEVELS: Mapping[GgufType, int] = {"Q8_0": 127, "Q4_0": 8}
"""The largest magnitude of a weight of a quantized type, in steps of its scale."""
_ACTIVATION_LEVELS = 127
_EXPONENTS = (0.25, 0.5, 0.75, 1.0)
_LARGEST_EXPONENT = 4  # of a factor: the scales are float16, whose range is small
_SMALLEST = (
    1 / 16
)  # of the median of its block: smaller channels count as this size, because other dialogues may enlarge them
_ROWS_AT_ONCE = 8192
HEAD_LOSS = 0.02
"""Mean error of log-probabilities that a Q8_0 head may cause: a fifth of what a Q8_0 file may differ."""
_DIALOGUES, _TOKENS = 64, 2048  # to measure on: at most, and about


@dataclass(frozen=True, slots=True)
class Channels:
    """Activations inside a model: the module that outputs them, and the modules that take them as input."""

    output_of: str
    input_of: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Activations of base + adapter on dialogues of the run's data."""

    sizes: Mapping[str, Tensor]
    """Root mean square of channels, shape (in,), by the first module in ``input_of``."""
    hidden_states: Tensor
    """Input of the head before each taught token, shape (n, in)."""
    taught: Tensor
    """Those tokens, shape (n,)."""


class Smoothed(NamedTuple):
    """What to write to a GGUF file."""

    weights: Weights
    head: GgufType = "Q8_0"
    """The type of the output head: F16 where rounding it and its input alone costs too much."""
    notes: Sequence[str] = ()


def smoothed(source: ExportSource, gguf_type: GgufType, stage: Stage) -> Smoothed:
    """Return the merged weights of ``source`` with their channels smoothed for ``gguf_type``.

    They are left as they are for a type that is not quantized, for a base that is itself a ``.gguf`` file (most of it
    is copied), and if there is no dialogue to measure on.
    """
    if gguf_type not in LEVELS or source.files.gguf:
        return Smoothed(source.merged)
    try:
        prompts, notes = choose_prompts(source, _DIALOGUES)
    except InputError:
        prompts, notes = [], []
    if not prompts:
        return Smoothed(source.merged)
    channels = list(channels_of(source.config))
    measured = measure(
        open_reference(source, choose_computing(source)).model,
        channels,
        _within(prompts),
        stage(say("export.smoothing.measuring")),
    )
    weights = SmoothedWeights(
        source.merged, channels, measured.sizes, gguf_type, stage(say("export.smoothing.smoothing"))
    )
    if gguf_type != "Q8_0":
        return Smoothed(weights, notes=notes)
    name = "model.embed_tokens.weight" if source.config.tie_word_embeddings else "lm_head.weight"
    loss = head_loss(
        measured, source.merged.read(name), weights.factors.get(name), stage(say("export.smoothing.trying_head"))
    )
    return Smoothed(weights, "F16" if loss > HEAD_LOSS else "Q8_0", notes)


def _within(prompts: Sequence[VerificationPrompt]) -> Sequence[VerificationPrompt]:
    """Return as many of ``prompts``, at even distances, as :data:`_TOKENS` tokens of the first ones make."""
    ends = accumulate(len(prompt.context + prompt.answer) for prompt in prompts)
    count = max(1, sum(end <= _TOKENS for end in ends))
    return prompts[:: len(prompts) // count][:count]


def channels_of(config: Any) -> Iterator[Channels]:
    """Yield the channels of a model of the Llama and Qwen families that can be scaled, in order of computation."""
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}"
        attention, mlp = f"{at}.self_attn", f"{at}.mlp"
        yield Channels(f"{at}.input_layernorm", (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"))
        yield Channels(f"{at}.post_attention_layernorm", (f"{mlp}.gate_proj", f"{mlp}.up_proj"))
        yield Channels(f"{mlp}.up_proj", (f"{mlp}.down_proj",))
    if not config.tie_word_embeddings:
        yield Channels("model.norm", ("lm_head",))


def measure(
    model: Any, channels: Iterable[Channels], prompts: Sequence[VerificationPrompt], progress: Progress
) -> Measurement:
    """Run ``model``, base + adapter in transformers, on ``prompts``."""
    sums: dict[str, Tensor] = {}
    tokens = 0

    def add(name: str, values: Tensor) -> None:  # values: (1, T, in)
        squares = values.float().square().sum(dim=(0, 1))
        sums[name] = sums[name] + squares if name in sums else squares

    def adding(name: str) -> Any:
        return lambda module, inputs: add(name, inputs[0])

    names = [each.input_of[0] for each in channels if each.input_of[0] != "lm_head"]
    hooks = [model.get_submodule(name).register_forward_pre_hook(adding(name)) for name in names]
    states = []
    try:
        with torch.inference_mode():
            for done, prompt in enumerate(prompts, 1):
                ids = torch.tensor([prompt.context + prompt.answer], device=model.device)
                entering = model.model(ids, use_cache=False).last_hidden_state  # without the head and its logits
                add("lm_head", entering)
                states.append(entering[0, -len(prompt.answer) - 1 : -1].float().cpu())
                tokens += ids.shape[1]
                progress(done, len(prompts))
    finally:
        for hook in hooks:
            hook.remove()
    sizes = {name: (total / tokens).sqrt().cpu() for name, total in sums.items()}
    return Measurement(sizes, torch.cat(states), torch.tensor([token for prompt in prompts for token in prompt.answer]))


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
