"""From a loaded model to a training loop: find out what the model can do, attach the adapter, choose the fast paths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from weitune.data.conversation import Example
from weitune.data.layout import Layout
from weitune.data.schedule import Plan
from weitune.errors import ModelError
from weitune.forecast.device_memory import (
    SHARE_OF_FREE_MEMORY,
    MemoryPlan,
    choose_recorded_tokens,
    free_bytes,
    plan_memory,
    resident_bytes,
)
from weitune.forecast.memory_estimate import PassConfig, Shape, trained_bytes
from weitune.model.capabilities import Capabilities, probe
from weitune.model.cuda_graph import CudaGraphPasses, can_record
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.matmul import by_onednn, kept_bytes
from weitune.model.load.weight_files import weight_files
from weitune.model.load.weights import LoadedModel
from weitune.model.lora.adapter import attach_adapter, check_targets, token_numbers
from weitune.model.lora.adapter_init import adapter_folder, start_eva, start_from, start_loftq
from weitune.model.lora.trainable_state import LoraAdapter, TrainableState, WholeModel
from weitune.model.storage.allocator import giving_back, keep_freed_memory
from weitune.model.storage.shard import gathered_bytes, held_numbers
from weitune.model.storage.weight_storage import dense_bytes, widen
from weitune.model.supervised import Row, SupervisedModel
from weitune.recipe.schema import Lora, Train
from weitune.training.distributed.processes import averaging_adapters
from weitune.training.loop import Examples, Loop
from weitune.training.optim import make_optimizer

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True)
class Trainable:
    """A model with what is trained of it, and what it was found to be able to do."""

    loaded: LoadedModel
    trained: TrainableState
    abilities: Capabilities
    """Of the model as it will be trained: its blocks are plain if they are with the adapter."""

    @property
    def layout(self) -> Layout:
        """How its examples are laid out."""
        return self.abilities.layout

    @property
    def shape(self) -> Shape:
        """The sizes of the model."""
        return Shape.of(self.loaded.model.config)

    @property
    def manner(self) -> PassConfig:
        """How its passes are computed."""
        lora: Any = getattr(self.trained.model, "peft_config", {}).get("default")
        plain_blocks = self.abilities.plain_blocks
        return PassConfig(
            number_bytes=self.loaded.dtype.itemsize,
            plain_blocks=plain_blocks,
            rank=lora.r if lora else 0,
            dropout=bool(lora and lora.lora_dropout),
            slices=self.loaded.device.type == "cpu",
            dense_bytes=dense_bytes(
                self.loaded.storage, self.loaded.dtype, plain_blocks=plain_blocks, dora=bool(lora and lora.use_dora)
            ),
        )

    def still_to_come(self) -> int:
        """Return the bytes that training will take besides its passes and has not taken yet.

        Weights that are mapped from a file come when they are read, gradients and moments with the first step, and the
        code of products with new shapes.
        """
        numbers = [(held_numbers(p), p.element_size(), p.requires_grad) for p in self.trained.model.parameters()]
        held = sum(numel * size for numel, size, _ in numbers)
        unread = max(0, held - resident_bytes()) if self.loaded.device.type == "cpu" else 0
        whole = gathered_bytes(self.loaded.model) if self.loaded.shards > 1 else 0
        code = kept_bytes(self.loaded.device.type, self.loaded.dtype)
        return unread + whole + code + sum(trained_bytes(sum(numel for numel, _, trained in numbers if trained))[1:])


def make_trainable(
    loaded: LoadedModel,
    lora: Lora | None,
    *,
    seed: int,
    base: str,
    steps: Iterable[Sequence[Example]] = (),
    fresh: bool = True,
) -> Trainable:
    """Probe ``loaded`` and attach a fresh adapter.

    ``steps`` are examples of optimizer steps, for a start that looks at the data. Without ``fresh`` a checkpoint will
    be loaded, and nothing is computed for a start. Raises ModelError if the recipe's adapter does not fit the model.
    """
    if lora is None:
        abilities = probe(loaded.model)
        loaded.model.requires_grad_(True)
        return Trainable(loaded, WholeModel(loaded.model), replace(abilities, plain_head=False, plain_blocks=False))
    check_targets(loaded.model, lora)
    abilities = probe(loaded.model)
    plain = lora if fresh else lora.model_copy(update={"init": "default", "init_from": None})
    tokens = token_numbers(loaded.tokenizer, lora.train_tokens or ())
    adapted = attach_adapter(loaded.model, plain, seed=seed, base=base, token_ids=tokens)
    trained = LoraAdapter(adapted, started_by=lora.init)
    head, blocks = loaded.model.get_output_embeddings(), BlockDecoder.of(loaded.model)
    trainable = Trainable(
        loaded,
        trained,
        replace(
            abilities,
            plain_head=abilities.plain_head and isinstance(head, nn.Linear) and not head.weight.requires_grad,
            plain_blocks=abilities.plain_blocks and blocks is not None and blocks.trains_all,
        ),
    )
    if not trainable.abilities.plain_blocks and loaded.model.dtype != loaded.dtype:
        if loaded.shards > 1:
            raise ModelError("training.build.train_storage_model_s", dtype=loaded.dtype)
        widen(loaded.model, loaded.dtype)  # its own modules compute in what they are stored in
    if plain.init_from:
        start_from(trained, adapter_folder(plain.init_from))
    elif plain.init == "loftq":
        start_loftq(adapted, loaded.files.folder)
    elif plain.init == "eva":
        lay, device = trainable.layout.lay, loaded.device
        start_eva(adapted, [Row.of(lay(examples), device) for examples in steps])
    whole = loaded.shards == 1 and trainable.abilities.plain_blocks
    if blocks and whole and by_onednn(loaded.device.type, loaded.dtype):
        with giving_back([] if loaded.files.gguf else weight_files(loaded.files.folder)):
            blocks.lay_out()
    return trainable


def make_loop(
    trainable: Trainable,
    train: Train,
    examples: Examples,
    plan: Plan,
    *,
    accelerator: Accelerator,
    micro_tokens: int | None = None,
    plus_ratio: float = 1.0,
    longest: int = 0,
) -> Loop:
    """Return the loop over ``plan``; ``micro_tokens`` overrides what ``train`` says or leaves open.

    ``longest`` is the length of the longest example, in tokens.
    """
    loaded, abilities = trainable.loaded, trainable.abilities
    if loaded.device.type == "cpu":
        keep_freed_memory()
    memory = choose_memory_plan(trainable, train, micro_tokens, longest)
    model = SupervisedModel(
        loaded.model,
        plain_head=abilities.plain_head,
        blocks=BlockDecoder.of(loaded.model, loaded.dtype) if abilities.plain_blocks else None,
        recompute=memory.recompute,
    )
    sharded = loaded.shards > 1
    recorded = None
    alone = accelerator.num_processes == 1 and not sharded  # what processes send each other is not recorded
    if alone and abilities.plain_blocks and can_record(loaded.model):
        manner = replace(trainable.manner, recompute=memory.recompute)
        recorded = CudaGraphPasses(model, choose_recorded_tokens(trainable.shape, manner, budget=_budget(trainable)))
    return Loop(
        model=averaging_adapters(model) if sharded else accelerator.prepare_model(model, device_placement=False),
        optimizer=make_optimizer(trainable.trained.model.named_parameters(), train, plus_ratio),
        accelerator=accelerator,
        examples=examples,
        plan=plan,
        layout=trainable.layout,
        train=train,
        micro_tokens=memory.micro_tokens,
        recompute=memory.recompute,
        sharded=sharded,
        recorded=recorded,
    )


def choose_memory_plan(trainable: Trainable, train: Train, micro_tokens: int | None, longest: int) -> MemoryPlan:
    """Return what ``auto`` stands for on this device, as it is now; ``micro_tokens`` overrides the recipe."""
    return plan_memory(
        trainable.shape,
        trainable.manner,
        train,
        budget=_budget(trainable),
        longest=longest,
        micro_tokens=micro_tokens,
    )


def _budget(trainable: Trainable) -> int:
    """Return the bytes that a pass may take on the device as it is now."""
    return int(SHARE_OF_FREE_MEMORY * (free_bytes(trainable.loaded.device) - trainable.still_to_come()))
