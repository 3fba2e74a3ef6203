"""A run, from its recipe to its adapter: assemble everything, check it, make the folder, loop, publish.

Whatever can be wrong with the user's input is found before the run's folder exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weitune.data.plan import Plan
from weitune.data.prepare import Prepared, prepare
from weitune.data.render import Framing, framing_for
from weitune.errors import DataError, Interrupted, ModelError, RunError
from weitune.generate.run_folder import Run
from weitune.model.adapter import count_parameters
from weitune.model.fingerprint import model_fingerprint, tokenizer_fingerprint
from weitune.model.load import LoadedModel, load_tokenizer, load_weights
from weitune.model.locate import ModelFiles, locate
from weitune.recipe.load import build_recipe, read_recipe_file
from weitune.recipe.schema import Recipe
from weitune.training import folder as run_folder
from weitune.training.assemble import Trainable, make_loop, make_trainable
from weitune.training.checkpoint import Checkpoint, newest_good
from weitune.training.journal import Journal
from weitune.training.reporter import Reporter
from weitune.training.signals import StopRequest, stop_requests

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(recipe: Recipe, *, reporter: Reporter | None = None, device: str | None = None) -> Run:
    """Fine-tune as ``recipe`` says and return the finished run.

    Raises InputError (and leaves no folder) if the recipe, the data, the model or the output folder are not in order,
    NonFiniteError if a loss or gradient is not finite, and Interrupted after a stop signal, with a checkpoint written.
    """
    folder = run_folder.output_folder(recipe)
    run_folder.check_free(folder)
    return _train(recipe, folder, reporter or Reporter(), device, resume=False)


def resume(
    folder: Path | str,
    *,
    overrides: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
    device: str | None = None,
) -> Run:
    """Go on with the run in ``folder`` from its newest good checkpoint, or from its start if it has none.

    ``overrides`` (dotted name to value) may change what does not alter the steps already done. Raises RunError if
    ``folder`` holds no run or a checkpoint does not fit, and otherwise what :func:`train` raises.
    """
    folder = Path(folder)
    if not (folder / run_folder.RECIPE).is_file():
        raise RunError(
            f"'{folder}' holds no run to resume: it has no {run_folder.RECIPE}",
            "Give the folder that an earlier `weitune train` made.",
        )
    recipe = build_recipe(read_recipe_file(str(folder / run_folder.RECIPE)), overrides)
    return _train(recipe, folder, reporter or Reporter(), device, resume=True)


def _train(recipe: Recipe, folder: Path, reporter: Reporter, device: str | None, *, resume: bool) -> Run:
    with stop_requests() as stop:
        run = _assemble(recipe, reporter, device)
        checkpoint, passed_over = newest_good(folder) if resume else (None, [])
        for line in passed_over:
            reporter.say(line)
        if not resume and run.accelerator.is_main_process:
            run_folder.create(folder, recipe, run.environment(), run.prepared.report.to_json())
        run.accelerator.wait_for_everyone()
        _loop(run, folder, checkpoint, reporter, stop)
    return Run(folder)


@dataclass(frozen=True, slots=True)
class _Assembled:
    """The parts of a run, all loaded and checked."""

    recipe: Recipe
    loaded: LoadedModel
    framing: Framing
    prepared: Prepared
    trainable: Trainable
    accelerator: Accelerator

    @property
    def plan(self) -> Plan:
        train = self.recipe.train
        return Plan(len(self.prepared), train.batch_size, train.epochs, train.seed, train.max_steps)

    def fingerprints(self) -> dict[str, Any]:
        """Return what a checkpoint must find again when the run goes on."""
        return {
            "model": model_fingerprint(self.loaded.files),
            "tokenizer": tokenizer_fingerprint(self.loaded.files),
            "data": self.prepared.fingerprint,
        }

    def environment(self) -> dict[str, Any]:
        return {
            **run_folder.describe_machine(self.loaded.device),
            "precision": str(self.loaded.dtype).removeprefix("torch."),
            "fingerprints": self.fingerprints(),
            "framing": self.framing.describe(),
            "shares_rows": self.trainable.abilities.shares_rows,
        }


def _assemble(recipe: Recipe, reporter: Reporter, device: str | None) -> _Assembled:
    """Load and check every part. Data come before weights, since most mistakes are there and they are found quickly."""
    files = locate(recipe.model, hub=recipe.hub, revision=recipe.revision)
    tokenizer = load_tokenizer(files)
    framing = framing_for(tokenizer, recipe.tokens)
    for note in framing.notes:
        reporter.say(note)
    accelerator = _accelerator(device)
    with accelerator.main_process_first():
        prepared = prepare(recipe, framing, reporter.preparing())
    for line in prepared.report.lines():
        reporter.say(line)
    _check_end_of_turn(framing, prepared)

    loaded = load_weights(files, tokenizer, precision=recipe.train.precision, device=device)
    _check_stops(loaded, framing, files, reporter)
    trainable = make_trainable(loaded, recipe.lora, seed=recipe.train.seed, base=recipe.model)
    if not trainable.abilities.shares_rows:
        why = trainable.abilities.why_not
        reporter.say(f"this model cannot share prefixes ({why}); it trains one conversation a row, padded")
    reporter.say(str(count_parameters(trainable.adapted)))
    return _Assembled(recipe, loaded, framing, prepared, trainable, accelerator)


def _accelerator(device: str | None) -> Accelerator:
    from accelerate import Accelerator

    return Accelerator(cpu=device == "cpu", mixed_precision="no")


def _check_end_of_turn(framing: Framing, prepared: Prepared) -> None:
    """Raise DataError unless the examples teach the model to end its turn."""
    looked_at = [prepared[k] for k in range(min(len(prepared), 1000))]
    if not any(e.input_ids[span.stop - 1] == framing.end_of_turn for e in looked_at for span in e.spans):
        raise DataError(
            "no example teaches the model to end its turn: the end-of-turn token is never supervised",
            "Raise tokens.max_length, or use tokens.truncation drop: the answers are cut before they end.",
        )


def _check_stops(loaded: LoadedModel, framing: Framing, files: ModelFiles, reporter: Reporter) -> None:
    """Say so if other programs would not stop where this model learns to stop; weitune itself always does."""
    if framing.end_of_turn >= loaded.model.get_input_embeddings().weight.shape[0]:
        raise ModelError(
            f"the end-of-turn token {framing.end_of_turn} is outside the vocabulary of '{files.folder}'",
            "The tokenizer belongs to another model.",
        )
    known = loaded.model.generation_config.eos_token_id
    stops = {known} if isinstance(known, int) else set(known or ())
    if not set(framing.stop_tokens) & stops:
        text = loaded.tokenizer.convert_ids_to_tokens(framing.end_of_turn)
        reporter.say(f"the model's generation config does not stop at {text}; weitune does, in chat and in exports")


def _loop(run: _Assembled, folder: Path, checkpoint: Checkpoint | None, reporter: Reporter, stop: StopRequest) -> None:
    """Train from ``checkpoint``, or from the start, to the end of the plan, and publish the adapter."""
    train, plan = run.recipe.train, run.plan
    # The same micro-batches give the same bits, so a resumed run keeps those that `auto` chose at its start.
    micro_tokens = checkpoint.state.get("micro_tokens") if checkpoint and train.micro_tokens == "auto" else None
    loop = make_loop(run.trainable, train, run.prepared, plan, accelerator=run.accelerator, micro_tokens=micro_tokens)
    state = {"micro_tokens": loop.micro_tokens, "recipe": run.recipe.model_dump(mode="json"), **run.fingerprints()}
    adapted = run.trainable.adapted
    journal = Journal(folder, adapted, loop.optimizer, run.recipe, plan, state, reporter, stop, run.accelerator)
    start = journal.begin(checkpoint)
    reporter.started(folder, start, plan.steps, train.log_every)
    try:
        loop.run(start, journal)
    finally:
        reporter.ended()
        journal.close()
    if stop and journal.step < plan.steps:
        raise Interrupted(
            f"stopped by {stop.signal.name if stop.signal else 'request'} after step {journal.step}; "
            f"go on with `weitune train --resume {folder}`"
        )
    journal.finish()
