"""How much memory training takes, part by part, from a model's shape alone.

    weights       every parameter in its number format; those mapped from a file count once they are read
    training      adapter, gradients, AdamW's two moments (float32), and the copies that a checkpoint is made of
    activations   what :mod:`weitune.model.fast.block` keeps of a pass over T tokens in L blocks:

                  h, middle    2·C          q, k, v and what attention keeps of them    3·HD + 3·GD + H
                  gate, up     2·I          the adapters' low-rank states               7·R
                  holes        C            memory lost to fragmentation (measured, not derived; C + I in 16 bits,
                                            where feed-forward values are not sliced)

                  and beside it one dropout string (T·I), the masks of attention, the adapters' matrices in the format
                  of computation, and what one block's backward works on
    logits        one chunk of the output head

These formulas hold for blocks like Llama's. All others are measured, run by a block decoder or by the model's own
modules (:mod:`.own_modules`).

Every forecast and every choice of ``train.micro_tokens`` comes from here; ``bench/plan_accuracy.py`` holds it against
measured peaks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weitune.messages import say
from weitune.model.fast.channel.feed_forward import SLICE_COLUMNS
from weitune.model.fast.loss import BLOCK_LOGITS, CHUNK_LOGITS
from weitune.model.fast.tree import BLOCK_ROWS
from weitune.recipe.schema import Recompute

if TYPE_CHECKING:
    from weitune.forecast.own_modules import Footprint, OwnModules

LEAST_TOKENS, ENOUGH_TOKENS, MOST_TOKENS = 256, 512, 16_384
"""``train.micro_tokens: auto`` chooses between LEAST and MOST, or more for a longer example. Values are recomputed only
if fewer tokens than ENOUGH would fit: longer passes are hardly faster."""
MOST_TOKENS_ON_CPU, SHORT_TOKENS_ON_CPU = 2048, 832
"""The same on a CPU, where longer passes are no faster and only take memory: SHORT if steps lose little of what they
share (:func:`weitune.forecast.workload.most_tokens_on_cpu`)."""
_CHECKPOINT_COPIES = 5
"""Copies of the adapter while a checkpoint is written: three in the snapshot, two in the file being written."""
_MOMENTS = 2
_HOLES = 1.5
"""Memory of the heap for each byte that autograd keeps alive on a CPU: what it keeps lies between what is freed
(measured: 1.25 to 2)."""
_PROJECTIONS = 7


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder that decide its memory."""

    layers: int
    hidden: int
    """C"""
    wide: int
    """I, of the feed-forward layer"""
    queries: int
    """HD, width of all query heads"""
    keys: int
    """GD, width of all key heads"""
    heads: int
    """H"""
    repeat: int
    """H / G"""
    vocabulary: int

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """Read the sizes from a configuration; of sizes that differ between layers, the largest."""
        text = config.get_text_config()
        hidden, heads = _largest(text, "hidden_size"), _largest(text, "num_attention_heads") or 1
        groups = _largest(text, "num_key_value_heads") or heads
        size = _largest(text, "head_dim") or hidden // heads
        wide = _largest(text, "intermediate_size") or 4 * hidden
        if experts := _largest(text, "moe_intermediate_size"):
            wide = experts * (_largest(text, "num_experts_per_tok") or 1)
        return cls(
            layers=_largest(text, "num_hidden_layers"),
            hidden=hidden,
            wide=wide,
            queries=heads * size,
            keys=groups * size,
            heads=heads,
            repeat=heads // groups,
            vocabulary=_largest(text, "vocab_size"),
        )


def _largest(config: Any, name: str) -> int:
    """Return the largest value of ``name`` in any layer, 0 if there is none."""
    found: list[int] = []
    for each in getattr(config, "per_layer_config", None) or [config]:
        value = getattr(each, name, None) or 0
        found += value if isinstance(value, list | tuple) else [value]
    return max(map(int, found))


@dataclass(frozen=True, slots=True)
class PassSize:
    """The size of one forward and backward pass."""

    tokens: int
    """T"""
    predictions: int
    """Rows of logits: states that predict, of groups of answers tokens that are learned."""
    longest: int
    """Tokens of the longest example: as far back as a token can look."""
    rows: int = 1
    """Rows of examples, if each is padded in a row of its own."""
    undivided: int = 0
    """Tokens of the largest group of preferences; 0 of examples."""

    @property
    def least(self) -> int:
        """Tokens that a pass must hold, however steps are split: the longest example or the largest group."""
        return max(self.longest, self.undivided)


@dataclass(frozen=True, slots=True)
class PassConfig:
    """How a pass is computed."""

    number_bytes: int
    """Bytes of a number in the format of computation: 4 or 2."""
    plain_blocks: bool = True
    """Whether :mod:`weitune.model.fast.block` runs it, or the model's own modules under autograd."""
    recompute: Recompute = "none"
    rank: int = 8
    dropout: bool = True
    slices: bool = True
    """Whether feed-forward values are computed in slices, as on a CPU."""
    dense_bytes: int = 0
    """Bytes of a number in the dense copy of a stored matrix, made when it is used (:func:`.dense_bytes`)."""
    modules: OwnModules | None = None
    """Measures a pass, if the formulas do not hold for it."""

    @property
    def keep_feed_forward(self) -> bool:
        """Whether the feed-forward layers' inner values are kept for backward."""
        return self.recompute == "none"


def activation_bytes_per_token(shape: ModelShape, config: PassConfig) -> int:
    """Return the bytes that a pass keeps of one token: all blocks, or with recomputation their inputs and one block.

    For the model's own modules it is a guess, for those that cannot be measured: autograd keeps about 16 vectors of the
    hidden size and 6 of the feed-forward size a block.
    """
    block = _kept_of_a_block(shape, config)
    if config.recompute == "block" or (config.recompute != "none" and not config.plain_blocks):
        return (shape.layers * shape.hidden + block) * config.number_bytes
    return shape.layers * block * config.number_bytes


def _factor_bytes(shape: ModelShape, config: PassConfig) -> int:
    """Return the bytes of the adapters' matrices as a pass multiplies by them: all blocks', or one's if recomputed."""
    if not config.plain_blocks:
        return 0
    attention = 2 * (shape.hidden + shape.queries) + 2 * (shape.hidden + shape.keys)
    of_a_block = config.rank * (attention + 3 * (shape.hidden + shape.wide))
    return of_a_block * (1 if config.recompute == "block" else shape.layers) * config.number_bytes


def _kept_of_a_block(shape: ModelShape, config: PassConfig) -> int:
    """Return how many values a block keeps of a token."""
    if not config.plain_blocks:
        return 16 * shape.hidden + 6 * shape.wide
    attention = 3 * shape.queries + 3 * shape.keys + shape.heads
    wide = 2 * shape.wide if config.keep_feed_forward else 0
    low = _PROJECTIONS * config.rank
    return 2 * shape.hidden + attention + wide + low + _holes_of_a_block(shape, config)


def _holes_of_a_block(shape: ModelShape, config: PassConfig) -> int:
    return (shape.hidden + (shape.wide if config.number_bytes == 2 else 0)) if config.slices else 0


def pass_bytes(shape: ModelShape, size: PassSize, config: PassConfig) -> tuple[int, int]:
    """Return the bytes that a pass takes at its peak: (activations and work space, logits)."""
    if config.modules is not None and size.tokens:
        recompute = config.recompute if config.plain_blocks or config.recompute == "none" else "block"
        footprint = config.modules.footprint(config.number_bytes, recompute=recompute, longest=size.longest)
        if footprint is not None:
            return _measured_bytes(footprint, shape, size, config)
    number = config.number_bytes
    kept = size.tokens * activation_bytes_per_token(shape, config) + _factor_bytes(shape, config)
    string = size.tokens * shape.wide * number if config.dropout else 0
    seen_keys = min(size.tokens, size.longest) // 2 + BLOCK_ROWS
    masks = size.tokens * seen_keys * (shape.repeat * number + 1) if config.slices else 0
    logits = _chunk_bytes(shape, size, config)
    backward = _work_of_a_block(shape, size, config) + _made_at_once(shape, config) * config.dense_bytes
    return kept + string + masks + max(0, backward - logits), logits  # the two are never there at once


def _work_of_a_block(shape: ModelShape, size: PassSize, config: PassConfig) -> int:
    """Return the bytes that backward of a block works on."""
    wide_values = 4 if config.keep_feed_forward else 6
    if config.slices and config.number_bytes >= 4:
        wide_values = 3  # slices are small, but fragment memory (measured, not derived)
    return size.tokens * (wide_values * shape.wide + 6 * shape.hidden) * config.number_bytes


def _measured_bytes(footprint: Footprint, shape: ModelShape, size: PassSize, config: PassConfig) -> tuple[int, int]:
    """Return the bytes that a pass with ``footprint`` takes at its peak: (activations and work space, logits)."""
    rows = max(size.rows, size.tokens / (size.longest or size.tokens))
    head = footprint.head.at(rows, size.tokens)
    if footprint.per_prediction:  # whole logits
        logits = head + round(footprint.per_prediction * size.predictions)
    else:
        states = 3 * size.predictions * shape.hidden * config.number_bytes
        logits = max(head, states + _chunk_bytes(shape, size, config))
    kept, work = (part.at(rows, size.tokens) for part in (footprint.kept, footprint.work))
    dense = _made_at_once(shape, config) * config.dense_bytes
    if config.plain_blocks:
        layers = 1 if config.recompute == "block" else shape.layers
        holes = size.tokens * layers * _holes_of_a_block(shape, config) * config.number_bytes
        if not config.slices:  # it was measured as on a CPU
            work = max(work, _work_of_a_block(shape, size, config))
        return kept + holes + max(0, work + dense - logits), logits
    work += dense
    chunk_stays = config.slices and not footprint.per_prediction  # the memory of a chunk is kept on a CPU
    alive = kept + (work if chunk_stays else max(0, work - logits))
    return round(alive * (_HOLES if config.slices else 1)), logits


def _chunk_bytes(shape: ModelShape, size: PassSize, config: PassConfig) -> int:
    number_bytes = config.number_bytes
    chunk = min(size.predictions, max(1, CHUNK_LOGITS[number_bytes] // shape.vocabulary)) * shape.vocabulary
    exact = 0 if number_bytes >= 4 else min(chunk, BLOCK_LOGITS) if config.slices else chunk
    return chunk * number_bytes + exact * 4


def _made_at_once(shape: ModelShape, config: PassConfig) -> int:
    """Return how many numbers of a stored matrix are made dense at once."""
    sliced = config.plain_blocks and config.slices and config.number_bytes >= 4
    return shape.hidden * (max(shape.queries, SLICE_COLUMNS[1]) if sliced else shape.wide)


def fitting_tokens(fits: Callable[[int], bool], least: int = LEAST_TOKENS, most: int = MOST_TOKENS) -> int:
    """Return the most tokens, from ``least`` to ``most``, for which ``fits`` is true; ``least`` if it is for none."""
    while least < most:
        middle = (least + most + 1) // 2
        if fits(middle):
            least = middle
        else:
            most = middle - 1
    return least


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The memory of a training process at its peak, by part, in bytes."""

    framework: int
    """Interpreter, libraries, and on an accelerator its context."""
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    """AdamW's moments, and the copies that a checkpoint is made of."""
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Return the parts by name, as files have them."""
        names = ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "framework")
        return {name: getattr(self, name) for name in names}

    def named_parts(self) -> dict[str, int]:
        return {
            say("forecast.memory_estimate.weights"): self.weights,
            say("forecast.memory_estimate.adapter"): self.adapter,
            say("forecast.memory_estimate.gradients"): self.gradients,
            say("forecast.memory_estimate.optimizer"): self.optimizer,
            say("forecast.memory_estimate.activations"): self.activations,
            say("forecast.memory_estimate.logits"): self.logits,
            say("forecast.memory_estimate.framework"): self.framework,
        }


def trained_bytes(trained: int) -> tuple[int, int, int]:
    """Return the bytes of an adapter of ``trained`` parameters, of its gradients, and of optimizer and checkpoint."""
    one = 4 * trained
    return one, one, (_MOMENTS + _CHECKPOINT_COPIES) * one
