"""Find out what a model can do by trying it: there is no list of models.

The model itself runs three short examples that share a beginning, separately and together as one packed row. Equal
hidden states show that examples can share a row. Equal logits show that :class:`.LogitForm` describes its output head,
and equal states of a :class:`.BlockDecoder` that its blocks are plain ones, which :mod:`.fast.block` runs faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weitune.data.conversation import Example, Span
from weitune.data.layout import SEPARATE, SHARED, Layout
from weitune.data.pack import PackedBatch, pack, visible
from weitune.data.pad import pad
from weitune.errors import first_line
from weitune.messages import say
from weitune.model.batch import PackedTensors, to_tensors
from weitune.model.fast.attention import tree_attention, use_tree_attention
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.loss import LogitForm
from weitune.model.logit_form import read_logit_form
from weitune.model.storage.weight_storage import is_quantized
from weitune.model.supervised import hidden_states
from weitune.model.windows import tells_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHARED_LAYERS = {"full_attention", "sliding_attention"}
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_UNSUITABLE = (ValueError, TypeError, AttributeError, RuntimeError, LookupError, AssertionError, ImportError)
"""What a model raises that cannot run in this way."""
_LENGTHS = ((6, 5), (6, 4), (9, 3))
"""Tokens of each example from a common beginning, and tokens after it."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a model can do."""

    shares_rows: bool
    head: LogitForm | None
    """How it makes its logits; None if only the model itself can."""
    plain_blocks: bool
    why_not: str = ""
    """Why examples cannot share a row, empty if they can."""

    @property
    def layout(self) -> Layout:
        return SHARED if self.shares_rows else SEPARATE


def probe(model: PreTrainedModel, blocks: BlockDecoder | None = None) -> Capabilities:
    """Return what ``model`` can do, and set the attention to train it with. Costs a few forwards of 30 tokens.

    ``blocks`` is its block decoder, if there is one already.
    """
    examples = _examples(model.config.get_text_config().vocab_size)
    device = model.get_input_embeddings().weight.device
    separate = to_tensors(pad(examples), device)
    with torch.no_grad():
        expected = hidden_states(model, separate)
        head = _logit_form(model, expected[separate.rows])
        why_not, bound = _why_rows_leak(model, examples, expected)
        if not why_not:
            use_tree_attention(model)
            blocks = blocks or BlockDecoder.from_model(model)
        plain_blocks = not why_not and _plain_blocks(model, blocks, to_tensors(pack(examples), device), bound)
    return Capabilities(not why_not, head, plain_blocks, why_not)


def _examples(vocabulary: int) -> list[Example]:
    words = torch.randint(vocabulary, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    own = iter(words[10:])
    texts = [(*words[:common], *(next(own) for _ in range(rest))) for common, rest in _LENGTHS]
    return [Example(text, (Span(1, len(text)),)) for text in texts]


def _why_rows_leak(model: PreTrainedModel, examples: list[Example], expected: Tensor) -> tuple[str, float]:
    """Return why examples cannot share a row, empty if they can, and a bound on differences by rounding."""
    bound = _TOLERANCE[model.dtype]
    if kinds := set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _SHARED_LAYERS:
        return say("model.capabilities.other_layers", kinds=", ".join(sorted(kinds))), bound
    try:
        if not tells_windows(model):
            return say("model.capabilities.window_in_mask"), bound
        with tree_attention(model):
            error = _error(model, examples, expected)
            if error >= bound:  # by rounding? then an example alone in its row differs as much, though nothing can mix
                width = len(expected) // len(examples)
                alone = [_error(model, [e], states) for e, states in zip(examples, expected.split(width), strict=True)]
                bound = min(2 * max(alone), 4 * bound)
        return ("" if error < bound else say("model.capabilities.tokens_mix", difference=error)), bound
    except _UNSUITABLE as problem:
        return first_line(problem), bound


def _error(model: PreTrainedModel, examples: list[Example], expected: Tensor) -> float:
    """Return the largest distance between the states of ``examples`` in one packed row and the expected ones."""
    batch = pack(examples)
    packed = hidden_states(model, to_tensors(batch, expected.device))
    return max(_distance(packed[rows], states) for rows, states in _pairs(batch, examples, expected))


def _pairs(batch: PackedBatch, examples: list[Example], expected: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for every example the rows of its tokens in ``batch``, and their expected states."""
    seen = visible(batch)
    row_of = {tuple(batch.input_ids[seen[row]].tolist()): row for row in range(len(batch))}
    width = max(len(example.inputs) for example in examples)
    for k, example in enumerate(examples):
        length = len(example.inputs)
        rows = [row_of[example.inputs[:n]] for n in range(1, length + 1)]
        yield torch.tensor(rows), expected[k * width : k * width + length]


def _logit_form(model: PreTrainedModel, hidden: Tensor) -> LogitForm | None:
    try:
        return read_logit_form(model, hidden, _TOLERANCE[model.dtype] / 10)
    except _UNSUITABLE:
        return None


def _plain_blocks(model: PreTrainedModel, blocks: BlockDecoder | None, batch: PackedTensors, bound: float) -> bool:
    """Return whether the model's blocks compute what ``blocks`` computes, up to ``bound``."""
    if blocks is None:
        return False
    try:
        ours = blocks.states(batch.input_ids[0], batch.tree, batch.rows, training=False)
    except _UNSUITABLE:
        return False
    exact = model.dtype == torch.float32 and not any(is_quantized(module) for module in model.modules())
    bound = bound / 10 if exact else max(bound, _TOLERANCE[torch.bfloat16])  # products are rounded differently
    return _distance(ours, hidden_states(model, batch)[batch.rows]) < bound


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the relative distance of two tensors."""
    return float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-30))
