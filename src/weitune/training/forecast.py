"""What a run will take, before any weights are loaded: memory by part, disk, and from two measured steps its time.

One estimate (:mod:`weitune.model.need`) serves ``weitune plan``, the first lines of ``weitune train``, the choice of
``train.micro_tokens`` and the warnings of :mod:`.foresight`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from weitune.model.memory import SHARE_OF_FREE_MEMORY, choose_micro_tokens
from weitune.model.need import Manner, MemoryNeed, PassSize, pass_bytes, trained_bytes
from weitune.model.outline import Outline, outline
from weitune.recipe.schema import Recipe
from weitune.training.workload import Workload

if TYPE_CHECKING:
    from weitune.training.assemble import Trainable
    from weitune.training.ingredients import Ingredients

Precision = Literal["fp32", "bf16", "4-bit"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "4-bit")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_FOUR_BIT_BYTES = 0.516
"""Of one number in NF4 with its block scales quantized again (QLoRA, arXiv 2305.14314: 4.127 bits)."""
_MIB = 1 << 20
_FRAMEWORK = {"cpu": 580 * _MIB}
"""Python, PyTorch, transformers, PEFT and the data, as measured on Linux with CPU builds."""
_CONTEXT = 700 * _MIB
"""Of an accelerator: an assumption."""


@dataclass(frozen=True, slots=True)
class Target:
    """A device that a run might have."""

    name: str
    kind: str
    """``cpu`` or an accelerator's, such as ``cuda``."""
    memory: int
    """Bytes that there are for the run."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The memory of a run on a target in one number format."""

    target: Target
    precision: Precision
    micro_tokens: int
    need: MemoryNeed

    @property
    def fits(self) -> bool:
        """Whether the need is within the target's memory."""
        return self.need.total <= self.target.memory


def memory_need(outline: Outline, precision: Precision, manner: Manner, size: PassSize, kind: str) -> MemoryNeed:
    """Return the memory of a run whose largest pass is ``size``, on a device of ``kind``."""
    adapter, gradients, optimizer = trained_bytes(outline.trainable)
    activations, logits = pass_bytes(outline.shape, size, manner)
    return MemoryNeed(
        framework=_FRAMEWORK.get(kind, _CONTEXT),
        weights=_weights(outline, precision, kind),
        adapter=adapter,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
    )


def _weights(outline: Outline, precision: Precision, kind: str) -> int:
    if precision == "4-bit":
        return int(outline.linear * _FOUR_BIT_BYTES + (outline.frozen - outline.linear) * 2)
    dtype = DTYPES[precision]
    mapped = kind == "cpu" and outline.stored == dtype  # then what is never read takes no memory
    return (outline.frozen - (outline.untied_embeddings if mapped else 0)) * dtype.itemsize


def manner_for(outline: Outline, recipe: Recipe, precision: Precision, kind: str) -> Manner:
    """Return how a run of ``recipe`` computes its passes on a device of ``kind``."""
    lora = recipe.lora
    return Manner(
        number_bytes=4 if precision == "fp32" else 2,
        plain_blocks=outline.abilities.plain_blocks,
        rank=0 if lora == "none" else lora.r,
        recompute="none" if recipe.train.recompute == "auto" else recipe.train.recompute,
        dropout=lora != "none" and lora.dropout > 0,
        slices=kind == "cpu",
    )


def fit(outline: Outline, recipe: Recipe, target: Target, precision: Precision, largest: PassSize) -> Fit:
    """Return the need on ``target``, with the ``train.micro_tokens`` of ``recipe`` or what ``auto`` would choose there.

    ``largest`` is the largest pass if nothing is split.
    """
    manner = manner_for(outline, recipe, precision, target.kind)
    asked = recipe.train.micro_tokens
    if asked == "auto":
        nothing = PassSize(0, 0, largest.longest)
        rest = memory_need(outline, precision, manner, nothing, target.kind).total
        budget = int(SHARE_OF_FREE_MEMORY * (target.memory - rest))
        asked = choose_micro_tokens(outline.shape, manner, budget=budget, longest=largest.longest)
    need = memory_need(outline, precision, manner, capped(largest, asked), target.kind)
    return Fit(target, precision, asked, need)


def capped(largest: PassSize, micro_tokens: int) -> PassSize:
    """Return how large a pass can be when steps are split: a pass holds at least one example."""
    tokens = min(largest.tokens, max(micro_tokens, largest.longest))
    return replace(largest, tokens=tokens, predictions=min(largest.predictions, tokens))


def ways_to_fit(outline: Outline, recipe: Recipe, target: Target, precision: Precision, largest: PassSize) -> list[str]:
    """Return the changes of the recipe, the mildest first, each of which makes the run fit ``target``."""
    return [words for words, changed, kind, size in _changes(recipe, precision, largest)
            if fit(outline, changed, target, kind, size).fits]  # fmt: skip


def _changes(
    recipe: Recipe, precision: Precision, largest: PassSize
) -> Iterator[tuple[str, Recipe, Precision, PassSize]]:
    def with_tokens(tokens: int) -> Recipe:
        return recipe.model_copy(update={"train": recipe.train.model_copy(update={"micro_tokens": tokens})})

    for tokens in (4096, 2048, 1024, 512, 256):
        if tokens < (largest.tokens if recipe.train.micro_tokens == "auto" else int(recipe.train.micro_tokens)):
            yield f"train.micro_tokens {tokens}", with_tokens(tokens), precision, largest
    if precision == "fp32":
        yield "train.precision bf16", recipe, "bf16", largest
        yield "train.precision bf16 and train.micro_tokens 256", with_tokens(256), "bf16", largest
    shorter = replace(largest, longest=min(largest.longest, 512))
    if shorter != largest:
        yield "tokens.max_length 512 and train.micro_tokens 512", with_tokens(512), precision, shorter


def checkpoint_bytes(outline: Outline) -> int:
    """Return the size of one checkpoint: the adapter and AdamW's two moments in float32."""
    return 3 * 4 * outline.trainable


def disk_bytes(outline: Outline, recipe: Recipe) -> int:
    """Return the room that the run's folder needs: checkpoints that stay, one being written, and the final adapter."""
    best = int(recipe.validation is not None)
    return (recipe.train.keep_checkpoints + best + 1) * checkpoint_bytes(outline) + 4 * outline.trainable


def step_costs(outline: Outline, workload: Workload) -> list[float]:
    """Return the floating-point operations of each step looked at, but for attention's own."""
    head = outline.shape.hidden * outline.shape.vocabulary
    return [_cost(step, outline.linear, head) for step in workload.steps]


def _cost(step: Sequence[PassSize], blocks: int, head: int) -> float:
    return 4.0 * sum(blocks * size.tokens + head * size.predictions for size in step)


def forecast_run(parts: Ingredients, trainable: Trainable, largest: PassSize) -> MemoryNeed:
    """Return the memory that a run whose model is loaded and whose largest pass is ``largest`` takes at its peak."""
    precision: Precision = "fp32" if trainable.loaded.dtype == torch.float32 else "bf16"
    found = outline(parts.files, parts.recipe.lora)
    return memory_need(found, precision, trainable.manner, largest, trainable.loaded.device.type)
