"""A run whose model is loaded and whose loop is made: all that its first step needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from weitune.data.conversation import Example
from weitune.data.frame.framing import Framing
from weitune.data.preference.values import Item, examples_in
from weitune.data.show.preview import parts as preview_parts
from weitune.errors import ModelError
from weitune.forecast.device_memory import MemoryPlan
from weitune.forecast.memory_estimate import MemoryEstimate, PassSize
from weitune.forecast.memory_watch import PassNeed, load_if_it_fits
from weitune.forecast.meta_model import build_meta_model
from weitune.forecast.run_forecast import Format, memory_need
from weitune.forecast.workload import Workload
from weitune.messages import joined, say
from weitune.model.load.config import loaded_stop_tokens
from weitune.model.load.weights import LoadedModel
from weitune.model.lora.adapter import count_parameters
from weitune.model.lora.adapter_init import EVA_STEPS
from weitune.model.untrained_tokens import untrained_note, untrained_tokens
from weitune.run.base_check import place_of_base
from weitune.run.data_record import DataRecord, ExamplePreview, ValidationSize
from weitune.run.machine import describe_machine
from weitune.run.names import KEPT, REFERENCE
from weitune.training.build import make_loop, make_trainable, pack_matrices
from weitune.training.inputs import RunInputs
from weitune.training.keep.kept import kept_size, to_collect, with_collected
from weitune.training.loop import Loop
from weitune.training.reference.measured import preferences_of, with_measured_reference
from weitune.training.reporter import Reporter
from weitune.training.session import Session
from weitune.training.trainable import Trainable

_PREVIEWED = 3
"""Examples that the report shows as the model sees them."""
_LOOKED_AT = 1000
"""Examples, or groups, whose learned tokens are looked at."""


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """Inputs, model and loop of a run."""

    inputs: RunInputs
    trainable: Trainable
    loop: Loop
    largest: PassSize
    """A pass as large as the largest one of the run in every respect."""

    def peak_memory(self) -> MemoryEstimate:
        loaded, adapter = self.trainable.loaded, self.inputs.recipe.adapter
        meta = build_meta_model(loaded.files, adapter, self.trainable.capabilities)
        form = Format.from_recipe(self.inputs.recipe, loaded.dtype)
        config = self.trainable.pass_config(self.loop.memory.recompute)
        need = memory_need(meta, form, config, self.largest, loaded.device.type, loaded.shards)
        copies = self.trainable.copied_bytes() if self.loop.memory.packed else 0
        return replace(need, weights=need.weights + copies)

    def pass_need(self) -> PassNeed:
        """Return the memory that the largest pass takes, and what else is yet to be allocated."""
        config = self.trainable.pass_config(self.loop.memory.recompute)
        return PassNeed.estimate(self.trainable.shape, config, self.largest, self.trainable.pending_bytes())

    def environment(self) -> dict[str, Any]:
        """Return what ``environment.json`` says of the run, but for the forecast."""
        return {
            **computed_with(self.trainable, self.loop.memory),
            "targets": self._recorded_targets(),
            **place_of_base(self.inputs.recipe),
            "basis": self.inputs.basis,
        }

    def data_record(self) -> DataRecord:
        """Return what the run's folder says about the data, with a preview of some examples."""
        inputs, held = self.inputs, self.inputs.validation
        previewed = (inputs.examples[k] for k in range(min(len(inputs.examples), _PREVIEWED)))
        preview = [
            ExamplePreview(
                place, [(part.text, part.kind) for part in preview_parts(example, inputs.tokenizer, inputs.framing)]
            )
            for item in previewed
            for place, example in _placed(item)
        ]
        validation = None if held is None else ValidationSize(len(held), int(held.supervised.sum()))
        return DataRecord(inputs.prepared.report, preview, validation, kept_size(inputs))

    def collected_files(self) -> dict[str, bytes]:
        """Return the files of the run's folder that a resumed run reads instead of collecting them again."""
        files = {KEPT: self.inputs.kept, REFERENCE: self.inputs.reference}
        return {name: contents.to_bytes() for name, contents in files.items() if contents is not None}

    def checkpoint_state(self) -> dict[str, Any]:
        """Return what every checkpoint says of the run it belongs to."""
        return {
            "steps": self.inputs.plan.steps,
            "micro_tokens": self.loop.memory.micro_tokens,
            "packed": self.loop.memory.packed,
            "processes": self.loop.accelerator.num_processes,
            "recipe": self.inputs.recipe.model_dump(mode="json"),
            "basis": self.inputs.basis,
            "targets": self._recorded_targets(),
        }

    def _recorded_targets(self) -> dict[str, Any] | None:
        targets = self.trainable.targets
        return targets.record() if targets else None


def computed_with(trainable: Trainable, memory: MemoryPlan) -> dict[str, Any]:
    """Return what decides the last bits of results besides recipe and inputs: machine, precision, passes."""
    loaded = trainable.loaded
    return {
        **describe_machine(loaded.device),
        "precision": str(loaded.dtype).removeprefix("torch."),
        "shares_rows": trainable.capabilities.shares_rows,
        "micro_tokens": memory.micro_tokens,
        "recompute": memory.recompute,
        "packed": memory.packed,
    }


def prepare_run(
    session: Session,
    inputs: RunInputs,
    precision: str,
    *,
    fresh: bool,
    micro_tokens: int | None = None,
    may_pack: bool = True,
    targets: Mapping[str, Any] | None = None,
) -> PreparedRun:
    """Load the weights, attach the adapter and make the loop.

    ``fresh`` initialises the adapter as the recipe says; otherwise a checkpoint will be loaded. ``micro_tokens``
    overrides the recipe; ``may_pack`` and ``targets`` are what a run that is resumed has recorded of its own. Raises
    ModelError if the weights do not fit memory, data or recipe.
    """
    recipe = inputs.recipe
    candidates = to_collect(inputs)  # first: what is wrong with them should not cost a loading of the weights
    trainable = _load(session, inputs, precision, fresh=fresh, targets=targets)
    inputs = with_collected(session, inputs, trainable, candidates)
    memory = trainable.memory_plan(
        recipe.train,
        longest=inputs.longest,
        micro_tokens=micro_tokens,
        may_pack=may_pack,
        most_on_cpu=inputs.most_on_cpu(trainable.capabilities, session.accelerator.num_processes),
    )
    pack_matrices(trainable, memory)  # the reference is measured as training computes
    inputs = with_measured_reference(session, inputs, trainable, memory)
    plan = inputs.plan
    loop = make_loop(
        trainable,
        recipe.train,
        inputs.examples,
        plan,
        accelerator=session.accelerator,
        memory=memory,
        plus_ratio=recipe.adapter.plus_ratio if recipe.adapter else 1.0,
        longest=inputs.longest,
        preferences=preferences_of(inputs),
    )
    largest = Workload.lay_out(inputs.examples, plan, loop.layout, loop.memory.micro_tokens).largest
    return PreparedRun(inputs, trainable, loop, largest)


def _load(
    session: Session, inputs: RunInputs, precision: str, *, fresh: bool, targets: Mapping[str, Any] | None
) -> Trainable:
    recipe, processes = inputs.recipe, session.accelerator.num_processes
    if recipe.train.shard:
        session.reporter.say(
            say("training.prepared_run.base_divided", processes=processes)
            if processes > 1
            else say("training.prepared_run.base_undivided")
        )
        session.accelerator.wait_for_everyone()  # so that all look at the free memory at about the same time
    loaded = load_if_it_fits(
        inputs.files,
        inputs.tokenizer,
        precision if recipe.adapter else "fp32",
        session.device,
        session.spread,
        recipe.train.storage,
        processes if recipe.train.shard else 1,
    )
    _check_stops(loaded, inputs.framing, session.reporter)
    untrained = untrained_tokens(loaded.model, inputs.tokenizer, _learned_tokens(inputs)) if fresh else []
    steps = (inputs.examples_of(step) for step in range(min(EVA_STEPS, inputs.plan.steps)))
    trainable = make_trainable(
        loaded, recipe.adapter, seed=recipe.train.seed, base=recipe.model, steps=steps, fresh=fresh, recorded=targets
    )
    if not trainable.capabilities.shares_rows:
        session.reporter.say(say("training.prepared_run.no_shared_prefixes", why=trainable.capabilities.why_not))
    elif not trainable.capabilities.plain_blocks:
        session.reporter.say(say("training.prepared_run.no_plain_blocks"))
    for line in trainable.targets.lines() if trainable.targets else ():
        session.reporter.say(line)
    if recipe.adapter and (note := untrained_note(loaded.model, inputs.tokenizer, recipe.adapter, untrained)):
        session.reporter.say(note)
    session.reporter.say(str(count_parameters(trainable.trained.model)))
    return trainable


def _learned_tokens(inputs: RunInputs) -> set[int]:
    """Return the tokens that the first examples teach the model to write."""
    looked_at = examples_in(inputs.examples[k] for k in range(min(len(inputs.examples), _LOOKED_AT)))
    return {token for e in looked_at for span in e.spans for token in e.input_ids[span.start : span.stop]}


def _placed(item: Item) -> list[tuple[str, Example]]:
    """Return the place of an example, or of each answer of a group with the verdict on it."""
    if isinstance(item, Example):
        return [(str(item.origin), item)]
    if len(item.answers) > 1:
        verdicts = say("training.prepared_run.chosen"), say("training.prepared_run.rejected")
    else:
        verdicts = say("training.prepared_run.liked"), say("training.prepared_run.disliked")
    return [
        (joined(", ", [str(item.origin), verdicts[not liked]]), answer)
        for answer, liked in zip(item.answers, item.liked, strict=True)
    ]


def _check_stops(loaded: LoadedModel, framing: Framing, reporter: Reporter) -> None:
    """Note if other programs would not stop where this model learns to stop; weitune itself always does.

    Raises ModelError if the tokenizer's end of turn is no token of the model.
    """
    if framing.end_of_turn >= loaded.model.get_input_embeddings().weight.shape[0]:
        raise ModelError(
            "training.prepared_run.end_of_turn_outside_vocabulary",
            end_of_turn=framing.end_of_turn,
            folder=loaded.files.folder,
        )
    if not set(framing.stop_tokens) & set(loaded_stop_tokens(loaded.model)):
        text = loaded.tokenizer.convert_ids_to_tokens(framing.end_of_turn)
        reporter.say(say("training.prepared_run.generation_config_does_not_stop", text=text))
