"""Find out what a model can do by trying it: there is no list of models.

The model itself runs three short examples that share a beginning, separately and together as one packed row. Equal
hidden states show that examples can share a row. Equal logits show that :class:`.LogitForm` describes its output head,
and equal states of a :class:`.BlockDecoder` that its blocks are plain ones, which :mod:`.fast.block` runs faster.

The modules of a recurrent layer let the branches of a packed row mix. If the blocks do not, they alone run such a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weitune.data.conversation import Example, Span
from weitune.data.layout import SEPARATE, SEPARATE_GROUPS, SHARED, SHARED_GROUPS, Layout
from weitune.data.pack import PackedBatch, pack, visible
from weitune.data.pad import pad
from weitune.errors import first_line
from weitune.messages import say
from weitune.model.batch import PackedTensors, to_tensors
from weitune.model.fast.attention import tree_attention, use_tree_attention
from weitune.model.fast.channel.side_by_side import SideBySide
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.loss import LogitForm
from weitune.model.fast.parts import BlockParts
from weitune.model.fast.recurrent.mixer import Recurrence
from weitune.model.fast.self_attention.observe import FOREVER
from weitune.model.logit_form import read_logit_form
from weitune.model.rotation_by_length import short_row_tokens
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
_CHUNK_TOKENS = 4
"""Tokens of a chunk in recurrent layers: few, so that the examples pass states from chunk to chunk."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a model can do."""

    shares_rows: bool
    head: LogitForm | None
    """How it makes its logits; None if only the model itself can."""
    plain_blocks: bool
    why_not: str = ""
    """Why the model's own modules cannot run examples that share a row, empty if they can. The blocks may still be able
    to."""
    short_row: int | None = None
    """Tokens above which rows have passes of their own (:mod:`.rotation_by_length`)."""

    @property
    def layout(self) -> Layout:
        return self._apart(SHARED if self.shares_rows else SEPARATE)

    @property
    def group_layout(self) -> Layout:
        return self._apart(SHARED_GROUPS if self.shares_rows else SEPARATE_GROUPS)

    def by_modules(self) -> Capabilities:
        """Return what the model can do by its own modules alone."""
        return replace(self, shares_rows=not self.why_not, plain_blocks=False)

    def _apart(self, layout: Layout) -> Layout:
        return layout if self.short_row is None else layout.apart(self.short_row)


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
        if why_not:
            blocks = blocks or _read_blocks(model)
            shares = head is not None and _blocks_share(model, blocks, examples, expected)
            return Capabilities(shares, head, shares, why_not, short_row_tokens(model))
        use_tree_attention(model)
        blocks = blocks or BlockDecoder.from_model(model)
        plain_blocks = _plain_blocks(model, blocks, to_tensors(pack(examples), device), bound)
    return Capabilities(True, head, plain_blocks, short_row=short_row_tokens(model))


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
            error, bound = _error(lambda row: hidden_states(model, row), examples, expected, bound)
        return ("" if error < bound else say("model.capabilities.tokens_mix", difference=error)), bound
    except _UNSUITABLE as problem:
        return first_line(problem), bound


def _error(
    compute: Callable[[PackedTensors], Tensor], examples: list[Example], expected: Tensor, bound: float
) -> tuple[float, float]:
    """Return the largest distance between the states of ``examples`` in one packed row and the expected ones.

    The ``bound`` is returned too; it is raised if an example alone in its row, where nothing can mix, differs as much.
    """
    error = _distance_in_row(compute, examples, expected)
    if error >= bound:
        width = len(expected) // len(examples)
        pairs = zip(examples, expected.split(width), strict=True)
        bound = min(2 * max(_distance_in_row(compute, [example], states) for example, states in pairs), 4 * bound)
    return error, bound


def _distance_in_row(compute: Callable[[PackedTensors], Tensor], examples: list[Example], expected: Tensor) -> float:
    batch = pack(examples)
    packed = compute(to_tensors(batch, expected.device))
    return max(_distance(packed[rows], states) for rows, states in _pairs(batch, examples, expected))


def _read_blocks(model: PreTrainedModel) -> BlockDecoder | None:
    try:
        return BlockDecoder.from_model(model)
    except _UNSUITABLE:
        return None


def _blocks_share(
    model: PreTrainedModel, blocks: BlockDecoder | None, examples: list[Example], expected: Tensor
) -> bool:
    """Return whether ``blocks`` compute of one row what the modules compute of ``examples`` apart."""
    if blocks is None or blocks.positions < FOREVER or not _has_only_known_mixers(model, blocks.parts):
        return False

    def compute(row: PackedTensors) -> Tensor:
        tree = replace(row.tree, chunk_tokens=_CHUNK_TOKENS)
        every = torch.arange(row.input_ids.shape[1], device=row.input_ids.device)
        return blocks.states(row.input_ids[0], tree, every, training=False)

    bound = _bound_of_blocks(model, _TOLERANCE[model.dtype])
    try:
        if _is_exact(model):  # an example alone passes states too, so it is no measure of rounding
            error = _distance_in_row(compute, examples, expected)
        else:
            error, bound = _error(compute, examples, expected, bound)
        return tells_windows(model) and error < bound
    except _UNSUITABLE:
        return False


def _has_only_known_mixers(model: PreTrainedModel, blocks: list[BlockParts]) -> bool:
    """Return whether some layers are recurrent, and those of a kind that is not known have no attention alone."""

    def mixers(block: BlockParts) -> list[bool]:
        mixers = [branch.mixer for branch in block.branches if branch.mixer.mixes_tokens]
        beside = [branch.mixer for each in mixers if isinstance(each, SideBySide) for branch in each.branches]
        return [isinstance(each, Recurrence) for each in (*mixers, *beside)]

    kinds = getattr(model.config.get_text_config(), "layer_types", None) or [""] * len(blocks)
    unknown = [block for kind, block in zip(kinds, blocks, strict=True) if kind and kind not in _SHARED_LAYERS]
    return any(any(mixers(block)) for block in blocks) and all(any(mixers(b)) or not mixers(b) for b in unknown)


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
    return _distance(ours, hidden_states(model, batch)[batch.rows]) < _bound_of_blocks(model, bound)


def _bound_of_blocks(model: PreTrainedModel, bound: float) -> float:
    """Return the bound for blocks, whose products are rounded in another way unless they are exact."""
    return bound / 10 if _is_exact(model) else max(bound, _TOLERANCE[torch.bfloat16])


def _is_exact(model: PreTrainedModel) -> bool:
    return model.dtype == torch.float32 and not any(is_quantized(module) for module in model.modules())


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the relative distance of two tensors."""
    return float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-30))
