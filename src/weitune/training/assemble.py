"""From a loaded model to a training loop: find out what the model can do, attach the adapter, choose the fast paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weitune.data.layout import SEPARATE, SHARED
from weitune.data.plan import Plan
from weitune.model.adapter import attach_adapter, check_targets
from weitune.model.decoder import BlockDecoder
from weitune.model.load import LoadedModel
from weitune.model.memory import choose_micro_tokens, keep_freed_memory
from weitune.model.probe import Abilities, probe
from weitune.model.supervised import SupervisedModel
from weitune.recipe.schema import Lora, Train
from weitune.training.loop import Examples, Loop
from weitune.training.optim import make_optimizer

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftModel


@dataclass(frozen=True, slots=True)
class Trainable:
    """A model with its adapter, and what it was found to be able to do."""

    loaded: LoadedModel
    adapted: PeftModel
    abilities: Abilities


def make_trainable(loaded: LoadedModel, lora: Lora, *, seed: int, base: str) -> Trainable:
    """Probe ``loaded`` and attach a fresh adapter. Raises ModelError if a target module does not exist."""
    check_targets(loaded.model, lora.target_modules)
    abilities = probe(loaded.model)
    return Trainable(loaded, attach_adapter(loaded.model, lora, seed=seed, base=base), abilities)


def make_loop(
    trainable: Trainable,
    train: Train,
    examples: Examples,
    plan: Plan,
    *,
    accelerator: Accelerator,
    micro_tokens: int | None = None,
) -> Loop:
    """Return the loop over ``plan``; ``micro_tokens`` overrides what ``train`` says or leaves open."""
    loaded, abilities = trainable.loaded, trainable.abilities
    if loaded.device.type == "cpu":
        keep_freed_memory()
    if micro_tokens is None:
        auto = train.micro_tokens == "auto"
        chosen = choose_micro_tokens(loaded.model, loaded.device, plain_blocks=abilities.plain_blocks)
        micro_tokens = chosen if auto else int(train.micro_tokens)
    model = SupervisedModel(
        loaded.model,
        plain_head=abilities.plain_head,
        blocks=BlockDecoder.of(loaded.model) if abilities.plain_blocks else None,
    )
    return Loop(
        model=accelerator.prepare_model(model, device_placement=False),
        optimizer=make_optimizer((p for p in trainable.adapted.parameters() if p.requires_grad), train),
        accelerator=accelerator,
        examples=examples,
        plan=plan,
        layout=SHARED if abilities.shares_rows else SEPARATE,
        train=train,
        micro_tokens=micro_tokens,
    )
