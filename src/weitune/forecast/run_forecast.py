"""Whether a run fits a device before any weights are loaded: memory by part in every format, disk, and cost.

One estimate (:mod:`.memory_estimate`) serves ``weitune plan``, the first lines of ``weitune train``, the choice of
``train.micro_tokens`` and the warnings of :mod:`.memory_watch`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from weitune.forecast.device_memory import SHARE_OF_FREE_MEMORY, MemoryPlan, plan_memory
from weitune.forecast.memory_estimate import (
    MOST_TOKENS_ON_CPU,
    MemoryEstimate,
    PassConfig,
    PassSize,
    pass_bytes,
    trained_bytes,
)
from weitune.forecast.meta_model import MetaModel
from weitune.forecast.workload import Workload
from weitune.messages import say
from weitune.model.fast.matmul import kept_bytes
from weitune.model.fast.packed import COPIES, packing_pays
from weitune.model.storage.weight_storage import STORED_BYTES, dense_bytes
from weitune.recipe.schema import QUANTIZED, TAKEN_FROM_BASE, Recipe, Storage

Precision = Literal["fp32", "bf16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_MIB = 1 << 20
_FRAMEWORK = {"cpu": 580 * _MIB}
"""Python, PyTorch, transformers, PEFT and the data, as measured on Linux with CPU builds."""
_MEASURED = 450 * _MIB
"""The same where passes are measured, and the holes in the heap are counted with the pass; without the tokenizer."""
_OF_A_TOKEN = 2048
"""What a tokenizer takes for each of its tokens: 1.5 to 2.8 kB, measured with 49,152 to 262,144 of them."""
_CONTEXT = 700 * _MIB
"""Of an accelerator's runtime: an assumption."""


@dataclass(frozen=True, slots=True)
class Target:
    """A device that a run might use."""

    name: str
    kind: str
    """``cpu`` or an accelerator's, such as ``cuda``."""
    memory: int
    """Bytes that the run may allocate."""


@dataclass(frozen=True, slots=True)
class Format:
    """The number formats of the base: of its computation, and of its weights in memory."""

    precision: Precision
    storage: Storage
    """Not ``auto``."""

    @classmethod
    def from_recipe(cls, recipe: Recipe, dtype: torch.dtype) -> Format:
        """Return the format of a run of ``recipe`` that computes in ``dtype``."""
        precision: Precision = "fp32" if dtype == torch.float32 or recipe.adapter is None else "bf16"
        storage = recipe.train.storage
        return cls(precision, precision if storage == "auto" else storage)

    @property
    def dtype(self) -> torch.dtype:
        """The format of computation."""
        return DTYPES[self.precision]


@dataclass(frozen=True, slots=True)
class Fit:
    """The memory of a run on a target in one format."""

    target: Target
    format: Format
    chosen: MemoryPlan
    need: MemoryEstimate

    @property
    def fits(self) -> bool:
        return self.need.total <= self.target.memory


def memory_need(
    meta: MetaModel, form: Format, config: PassConfig, size: PassSize, kind: str, shards: int = 1
) -> MemoryEstimate:
    """Return the memory of a process of a run whose largest pass is ``size``, on a device of ``kind``.

    The base is divided among ``shards`` processes.
    """
    adapter, gradients, optimizer = trained_bytes(meta.trainable)
    activations, logits = pass_bytes(meta.shape, size, config)
    framework = _FRAMEWORK.get(kind, _CONTEXT)
    measured = not config.plain_blocks or config.modules is not None
    if kind == "cpu" and measured and form.storage not in QUANTIZED:
        framework = _MEASURED + _OF_A_TOKEN * meta.shape.vocabulary
    if config.plain_blocks or form.dtype.itemsize == 2:  # own modules multiply float32 without oneDNN
        framework += kept_bytes(kind, form.dtype)
    return MemoryEstimate(
        framework=framework,
        weights=_weights(meta, form, kind) if shards == 1 else _sharded(meta, form, shards),
        adapter=adapter,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
    )


def _weights(meta: MetaModel, form: Format, kind: str) -> int:
    if form.storage in QUANTIZED:
        others = 2 if meta.capabilities.plain_blocks else form.dtype.itemsize
        return int(meta.linear * STORED_BYTES[form.storage] + (meta.frozen - meta.linear) * others)
    dtype = DTYPES[form.storage] if meta.capabilities.plain_blocks else form.dtype
    mapped = kind == "cpu" and meta.stored == dtype  # what is never read takes no memory
    return (meta.frozen - (meta.untied_embeddings if mapped else 0)) * dtype.itemsize


def _sharded(meta: MetaModel, form: Format, shards: int) -> int:
    """Return the bytes of one shard and of the largest gathered unit (:mod:`weitune.model.storage.shard`)."""
    shape = meta.shape
    unit = max(meta.linear // shape.layers, shape.hidden * shape.vocabulary)
    return (meta.frozen // shards + 2 * unit) * DTYPES[form.storage].itemsize


def pass_config_for(meta: MetaModel, recipe: Recipe, form: Format, kind: str) -> PassConfig:
    """Return how a run of ``recipe`` computes its passes on a device of ``kind`` if it recomputes nothing."""
    lora, plain_blocks = recipe.adapter, meta.capabilities.plain_blocks
    return PassConfig(
        number_bytes=form.dtype.itemsize,
        plain_blocks=plain_blocks,
        rank=lora.r if lora else 0,
        dropout=lora is not None and lora.dropout > 0,
        slices=kind == "cpu",
        dense_bytes=dense_bytes(
            form.storage, form.dtype, plain_blocks=plain_blocks, dora=lora is not None and lora.dora
        ),
        modules=meta.modules,
    )


def fit(
    meta: MetaModel,
    recipe: Recipe,
    target: Target,
    form: Format,
    largest: PassSize,
    processes: int = 1,
    most_on_cpu: int = MOST_TOKENS_ON_CPU,
) -> Fit:
    """Estimate the memory of a run on ``target``, with ``auto`` resolved as training would resolve it there.

    ``largest`` is the largest pass if nothing is split, of one of the run's ``processes``, each of which has a target.
    On a CPU ``auto`` splits steps into passes of ``most_on_cpu`` tokens.
    """
    config = pass_config_for(meta, recipe, form, target.kind)
    shards = processes if recipe.train.shard else 1
    rest = memory_need(meta, form, replace(config, dense_bytes=0), PassSize(0, 0, 0), target.kind, shards).total
    budget = int(SHARE_OF_FREE_MEMORY * (target.memory - rest))
    sizes = {"longest": largest.longest, "undivided": largest.undivided}
    copies = _copied_bytes(meta, recipe, form, target.kind) if shards == 1 else 0
    chosen = plan_memory(
        meta.shape, config, recipe.train, budget=budget, copies=copies, most_on_cpu=most_on_cpu, **sizes
    )
    config = replace(config, recompute=chosen.recompute)
    need = memory_need(meta, form, config, capped(largest, chosen.micro_tokens), target.kind, shards)
    if chosen.packed:
        need = replace(need, weights=need.weights + copies)
    return Fit(target, form, chosen, need)


def _copied_bytes(meta: MetaModel, recipe: Recipe, form: Format, kind: str) -> int:
    """Return the bytes of packed copies of the frozen matrices, 0 if there is no use for them."""
    lora = recipe.adapter
    rescaled = lora is None or (lora.dora and not lora.dropout)  # such matrices are multiplied by factors in a pass
    packs = kind == "cpu" and form.storage == "bf16" == form.precision and not rescaled and packing_pays()
    return COPIES * meta.linear * form.dtype.itemsize if packs and meta.capabilities.plain_blocks else 0


def capped(largest: PassSize, micro_tokens: int) -> PassSize:
    """Return the size of the largest pass when steps are split: a pass holds at least one example or group."""
    tokens = min(largest.tokens, max(micro_tokens, largest.least))
    rows = -(-largest.rows * tokens // largest.tokens)
    return replace(largest, tokens=tokens, predictions=min(largest.predictions, tokens), rows=rows)


def formats(meta: MetaModel, recipe: Recipe, precision: Precision) -> list[Format]:
    """Return every format of a run of ``recipe`` where it would compute in ``precision``, the widest first."""
    full = Format("fp32", "fp32")
    if recipe.adapter is None:
        return [full]
    rounded: tuple[Storage, ...] = QUANTIZED if _may_be_quantized(meta, recipe) else ()
    return [full, *(Format(precision, storage) for storage in ("bf16", *rounded))]


def _may_be_quantized(meta: MetaModel, recipe: Recipe) -> bool:
    plain = not meta.gguf and not recipe.train.shard
    return plain and recipe.adapter is not None and recipe.adapter.init not in TAKEN_FROM_BASE


def ways_to_fit(
    meta: MetaModel,
    recipe: Recipe,
    target: Target,
    form: Format,
    largest: PassSize,
    processes: int = 1,
    most_on_cpu: int = MOST_TOKENS_ON_CPU,
) -> list[str]:
    """Return the changes of the recipe, the mildest first, each of which makes the run fit ``target``."""
    ways: list[_Keys] = []
    for keys, to, size in _changes(meta, recipe, form, largest, processes):
        more_than_enough = keys[:-1] in ways
        changed = _with_keys(recipe, keys)
        if not more_than_enough and fit(meta, changed, target, to, size, processes, most_on_cpu).fits:
            ways.append(keys)
    return [_shown(keys) for keys in ways]


_Keys = tuple[tuple[str, object], ...]
"""Dotted keys of a recipe with their new values."""


def _shown(keys: _Keys) -> str:
    shown = [f"{key} {str(value).lower() if isinstance(value, bool) else value}" for key, value in keys]
    return shown[0] if len(shown) == 1 else say("forecast.run_forecast.both", first=shown[0], second=shown[1])


def _with_keys(recipe: Recipe, keys: _Keys) -> Recipe:
    """Return ``recipe`` with the new values of the group ``train``; the others decide the size of a pass alone."""
    values = {key.removeprefix("train."): value for key, value in keys if key.startswith("train.")}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=values)})


def _changes(
    meta: MetaModel, recipe: Recipe, form: Format, largest: PassSize, processes: int
) -> Iterator[tuple[_Keys, Format, PassSize]]:
    for tokens in (4096, 2048, 1024, 512, 256):
        if tokens < (largest.tokens if recipe.train.micro_tokens == "auto" else int(recipe.train.micro_tokens)):
            yield (("train.micro_tokens", tokens),), form, largest
    if processes > 1 and recipe.may_be_sharded and not recipe.train.shard:
        yield (("train.shard", True),), form, largest
    for key, value, to in _milder(meta, recipe, form):
        yield ((key, value),), to, largest
        yield ((key, value), ("train.micro_tokens", 256)), to, largest
    answers = recipe.preference.answers if recipe.preference else 1
    shorter = replace(largest, longest=min(largest.longest, 512), undivided=min(largest.undivided, 512 * answers))
    if shorter != largest:
        yield (("tokens.max_length", 512), ("train.micro_tokens", 512)), form, shorter


def _milder(meta: MetaModel, recipe: Recipe, form: Format) -> Iterator[tuple[str, str, Format]]:
    """Yield (dotted key, value, resulting format) for each change that saves memory without shorter passes."""
    train = recipe.train
    if train.recompute in {"none", "feed-forward"}:
        yield "train.recompute", "block", form
    if recipe.adapter is None:
        return
    if form.storage == "fp32":
        yield "train.storage", "bf16", replace(form, storage="bf16")
    if form.precision == "fp32" and train.storage != "fp32":
        yield "train.precision", "bf16", Format("bf16", "bf16" if train.storage == "auto" else form.storage)
    if _may_be_quantized(meta, recipe):
        for storage in QUANTIZED[QUANTIZED.index(form.storage) + 1 if form.storage in QUANTIZED else 0 :]:
            yield "train.storage", storage, replace(form, storage=storage)


def checkpoint_bytes(meta: MetaModel) -> int:
    """Return the size of one checkpoint: the adapter and AdamW's two moments in float32."""
    return 3 * 4 * meta.trainable


def disk_bytes(meta: MetaModel, recipe: Recipe) -> int:
    """Return the size of the run's folder: the checkpoints kept, one being written, and the final adapter."""
    best = int(recipe.validation is not None)
    return (recipe.train.keep_checkpoints + best + 1) * checkpoint_bytes(meta) + 4 * meta.trainable


def step_costs(meta: MetaModel, workload: Workload) -> list[float]:
    """Return the floating-point operations of each step of ``workload``, without those of attention itself."""
    head = meta.shape.hidden * meta.shape.vocabulary
    return [
        4.0 * sum(meta.computed * size.tokens + head * size.predictions for size in step) for step in workload.steps
    ]
