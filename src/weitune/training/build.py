"""From a loaded model to a training loop: probe the model, attach the adapter, choose the fast paths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from weitune.data.conversation import Example
from weitune.data.prepare.holdout import Items
from weitune.data.schedule import Plan
from weitune.errors import ModelError
from weitune.forecast.device_memory import MemoryPlan
from weitune.forecast.meta_model import own_modules
from weitune.forecast.workload import most_tokens_on_cpu
from weitune.model.batch import to_tensors
from weitune.model.capabilities import probe
from weitune.model.cuda_graph import CudaGraphPasses, can_record
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.matmul import by_onednn
from weitune.model.fast.packed import pack_layers, packed_matrix
from weitune.model.fast.self_attention.observe import FOREVER
from weitune.model.load.names import model_names
from weitune.model.load.weight_files import weight_files
from weitune.model.load.weights import LoadedModel, load_model
from weitune.model.lora.adapter import attach_adapter, token_ids_of
from weitune.model.lora.adapter_init import adapter_folder, start_eva, start_from, start_loftq
from weitune.model.lora.targets import find_targets
from weitune.model.lora.trainable_state import LoraAdapter, WholeModel
from weitune.model.own_dropout import turn_off_own_dropout
from weitune.model.storage.allocator import keep_freed_memory, releasing_freed_memory
from weitune.model.storage.weight_storage import widen
from weitune.model.supervised import SupervisedModel
from weitune.recipe.schema import Lora, Recipe, Train
from weitune.training.distributed.processes import averaging_adapters
from weitune.training.loop import Loop
from weitune.training.objective.preference_loss import PreferenceLoss
from weitune.training.objective.preference_objective import PreferenceObjective
from weitune.training.objective.step_objective import SUPERVISED, Objective
from weitune.training.optim import make_optimizer
from weitune.training.passes import GraphPasses, Passes
from weitune.training.preference.answer_meter import AnswerMeter
from weitune.training.preference.preferences import Preferences
from weitune.training.trainable import Trainable

if TYPE_CHECKING:
    from accelerate import Accelerator


def load_base(recipe: Recipe, device: str | None) -> LoadedModel:
    """Load the base of ``recipe`` as it is trained. Raises ModelError if it cannot be loaded."""
    return load_model(
        recipe.model,
        precision=recipe.train.precision if recipe.adapter else "fp32",
        storage=recipe.train.storage,
        hub=recipe.hub,
        revision=recipe.revision,
        device=device,
    )


def make_trainable(
    loaded: LoadedModel,
    lora: Lora | None,
    *,
    seed: int,
    base: str,
    steps: Iterable[Sequence[Example]] = (),
    fresh: bool = True,
    recorded: Mapping[str, Any] | None = None,
) -> Trainable:
    """Probe ``loaded`` and attach an adapter, or without one train all its weights.

    ``steps`` are examples of optimizer steps, for an initialisation that looks at the data. Without ``fresh`` a
    checkpoint will be loaded, and the adapter gets the default initialisation; ``recorded`` is what the run that is
    resumed says of its targets. Raises ModelError if the recipe's
    adapter does not fit the model.
    """
    turn_off_own_dropout(loaded.model)
    if lora is None:
        capabilities = replace(probe(loaded.model).by_modules(), head=None)
        loaded.model.requires_grad_(True)
        return Trainable(
            loaded,
            WholeModel(loaded.model),
            capabilities,
            modules=own_modules(loaded.files, None, capabilities, loaded.model),
        )
    targets = find_targets(loaded.model, lora, recorded)
    plain_decoder = BlockDecoder.from_model(loaded.model)
    capabilities = probe(loaded.model, plain_decoder)
    if not capabilities.plain_blocks:
        plain_decoder = None
    init = lora if fresh else lora.model_copy(update={"init": "default", "init_from": None})
    token_ids = token_ids_of(loaded.tokenizer, lora.train_tokens or ())
    adapted = attach_adapter(loaded.model, init, seed=seed, base=base, token_ids=token_ids, targets=targets)
    adapter = LoraAdapter(adapted, initialised_by=lora.init, names=model_names(loaded.files))
    blocks = plain_decoder and plain_decoder.with_adapters(loaded.dtype)
    head = capabilities.head if _has_frozen_linear_head(loaded) else None
    if blocks is None or head is None:  # without a plain head the modules run every row
        blocks, capabilities = None, capabilities.by_modules()
        _widen(loaded)
    if init.init_from:
        start_from(adapter, adapter_folder(init.init_from))
    elif init.init == "loftq":
        start_loftq(adapted, loaded.files)
    elif init.init == "eva":
        layout = capabilities.by_modules().layout
        start_eva(adapted, [to_tensors(layout.lay(examples), loaded.device) for examples in steps])
        blocks = blocks and blocks.with_adapters(loaded.dtype)  # PEFT has put new A and B in
    if blocks is not None:
        _lay_out(blocks, loaded)
    capabilities = replace(capabilities, head=head)
    modules = own_modules(loaded.files, lora, capabilities, loaded.model)
    return Trainable(loaded, adapter, capabilities, blocks, targets, modules)


def _can_record_passes(trainable: Trainable) -> bool:
    """Return whether every pass is the same work on the device, whatever its tokens are."""
    blocks, loaded = trainable.blocks, trainable.loaded
    if blocks is None or trainable.capabilities.why_not:  # recurrent layers cut every row into other chunks
        return False
    fixed = not blocks.waits_for(loaded.device) and blocks.positions >= FOREVER
    return fixed and can_record(loaded.model)


def _widen(loaded: LoadedModel) -> None:
    """Store the weights in the format of computation: a model's own modules compute in what they are stored in."""
    if loaded.model.dtype == loaded.dtype:
        return
    if loaded.shards > 1:
        raise ModelError("training.build.storage_needs_blocks", dtype=str(loaded.dtype).removeprefix("torch."))
    widen(loaded.model, loaded.dtype)


def _lay_out(blocks: BlockDecoder, loaded: LoadedModel) -> None:
    """Lay the matrices of whole, unsharded blocks out as oneDNN multiplies them fastest."""
    if loaded.shards == 1 and by_onednn(loaded.device.type, loaded.dtype):
        with releasing_freed_memory(_mapped_files(loaded)):
            blocks.lay_out()


def pack_matrices(trainable: Trainable, memory: MemoryPlan) -> None:
    """Make the copies of frozen matrices that ``memory`` has, unless they are there.

    The pages of matrices that are mapped from a file are released: training reads the copies.
    """
    if not memory.packed or trainable.blocks is None:
        return
    layers = [layer for layer in trainable.blocks.packable() if packed_matrix(layer) is None]
    if layers:
        with releasing_freed_memory(_mapped_files(trainable.loaded)):
            pack_layers(layers)
        keep_freed_memory()


def _mapped_files(loaded: LoadedModel) -> list[Path]:
    return [] if loaded.files.gguf else weight_files(loaded.files.folder)


def _has_frozen_linear_head(loaded: LoadedModel) -> bool:
    head = loaded.model.get_output_embeddings()
    return isinstance(head, nn.Linear) and not head.weight.requires_grad


def make_loop(
    trainable: Trainable,
    train: Train,
    examples: Items,
    plan: Plan,
    *,
    accelerator: Accelerator,
    memory: MemoryPlan | None = None,
    plus_ratio: float = 1.0,
    longest: int = 0,
    preferences: Preferences | None = None,
) -> Loop:
    """Return the loop over ``plan``.

    ``memory`` is what ``train`` resolves to, if that is known; ``longest`` is the length of the longest example, or of
    the largest group, in tokens. With ``preferences``, the items are groups.
    """
    loaded = trainable.loaded
    if loaded.device.type == "cpu":
        keep_freed_memory()
    layout = trainable.group_layout if preferences else trainable.layout
    memory = memory or trainable.memory_plan(
        train, longest=longest, most_on_cpu=most_tokens_on_cpu(examples, plan, layout)
    )
    pack_matrices(trainable, memory)
    supervised = SupervisedModel(
        loaded.model,
        head=trainable.capabilities.head,
        blocks=trainable.blocks,
        recompute=memory.recompute,
        objective=None if preferences is None else PreferenceLoss(preferences.preference),
    )
    sharded = loaded.shards > 1
    graphs = None
    alone = accelerator.num_processes == 1 and not sharded  # what processes send each other cannot be in a graph
    if alone and _can_record_passes(trainable):
        graphs = CudaGraphPasses(supervised, trainable.graph_tokens(memory.recompute))
    model = averaging_adapters(supervised) if sharded else accelerator.prepare_model(supervised, device_placement=False)
    optimizer = make_optimizer(trainable.trained.model.named_parameters(), train, plus_ratio)
    passes = (
        Passes(model, optimizer, accelerator) if graphs is None else GraphPasses(model, optimizer, accelerator, graphs)
    )
    objective: Objective = SUPERVISED
    if preferences is not None:
        objective = PreferenceObjective(preferences, plan, AnswerMeter.of(trainable, accelerator, memory.micro_tokens))
    return Loop(
        model=model,
        optimizer=optimizer,
        accelerator=accelerator,
        passes=passes,
        examples=examples,
        plan=plan,
        layout=layout,
        train=train,
        memory=memory,
        objective=objective,
        sharded=sharded,
    )
