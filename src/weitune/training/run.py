"""A run, from its recipe to its adapter: collect its inputs, check them, make the folder, loop, publish.

The user's input is checked before the run's folder is created. When a run is resumed, differences from the original run
are reported before any of its files change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from weitune.errors import InputError, Interrupted
from weitune.files.json_files import json_object
from weitune.forecast import memory_watch
from weitune.forecast.run_forecast import Format
from weitune.generate.run import Run
from weitune.messages import say
from weitune.model.file_names import ADAPTER_FOLDER
from weitune.model.load.fingerprint import fingerprints_as
from weitune.recipe.schema import Recipe
from weitune.report.run_report import write_report
from weitune.run.base_check import fingerprints_in, pinned
from weitune.run.checkpoint import Checkpoint, publish_adapter
from weitune.run.create import (
    check_free,
    check_named,
    check_run,
    create_folder,
    holds_run,
    load_recorded,
    output_folder,
    update_recipe,
)
from weitune.run.disk_retry import refusals_explained
from weitune.run.events import EventLog, read_events
from weitune.run.machine import describe_machine, machine_changes
from weitune.run.names import OUTCOME
from weitune.run.preference_figures import chosen_note
from weitune.training.distributed.processes import check_same_step, peer_failures_explained
from weitune.training.inputs import RunInputs, collect_inputs
from weitune.training.keep.kept import with_recorded
from weitune.training.optim import warmup_note
from weitune.training.prepared_run import PreparedRun, prepare_run
from weitune.training.record.recorder import Recorder
from weitune.training.record.trackers import TrackedReporter, check_trackers
from weitune.training.reference.measured import with_recorded_reference
from weitune.training.reporter import Reporter
from weitune.training.resume import resume_checks
from weitune.training.resume.resume_state import ResumeState
from weitune.training.session import Session, open_session
from weitune.training.signals import StopRequest
from weitune.training.validation import make_validator, sample_schema
from weitune.training.validation_history import chosen_checkpoint


def train(
    recipe: Recipe,
    *,
    resume_existing: bool = False,
    reporter: Reporter | None = None,
    device: str | None = None,
    stop: StopRequest | None = None,
) -> Run:
    """Fine-tune as ``recipe`` says and return the finished run.

    With ``resume_existing``, an existing run of this recipe in ``recipe.output`` is resumed as :func:`resume` does, so
    the same call may be repeated after a crash. ``stop`` lets a program end the run from another thread, as SIGINT and
    SIGTERM do.

    Raises InputError (and leaves no folder) if the recipe, the data, the model or the output folder are not in order,
    RunError if disk or memory run out, NonFiniteError if a loss or gradient is not finite, and Interrupted after a
    stop, with a checkpoint if a step was done.
    """
    folder = output_folder(recipe)
    if resume_existing:
        check_named(recipe)
    else:
        check_free(folder)
    with open_session(folder, reporter, stop, device, recipe.train.save_on_each_node) as opened:
        if not recipe.output:  # its name has the time, which processes may have read in different seconds
            folder = opened.folder_of_main()
        session = replace(opened, folder=folder)
        # Decided once all processes have started: a late one would see the folder that another has just made.
        if resume_existing and session.sees(lambda: holds_run(folder)):
            with session.lock():
                _resume(session, recipe, compare=True)
        else:
            _begin(session, recipe)
    return Run(folder)


def resume(
    folder: Path | str,
    *,
    overrides: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
    device: str | None = None,
    stop: StopRequest | None = None,
) -> Run:
    """Go on with the run in ``folder`` from its newest good checkpoint, or from its start if it has none.

    ``overrides`` (dotted name to value) may hold the keys of :data:`.MAY_CHANGE`. A complete run is not trained
    further. Raises RunError if ``folder`` holds no run, if another process trains in it, or if recipe, data, model or
    plan differ from those of the run, and otherwise what :func:`train` raises.
    """
    folder = Path(folder)
    check_run(folder)
    recipe = load_recorded(folder, overrides)
    with open_session(folder, reporter, stop, device, recipe.train.save_on_each_node) as session, session.lock():
        _resume(session, recipe)
    return Run(folder)


def _begin(session: Session, recipe: Recipe) -> None:
    check_trackers(recipe)
    sample_schema(recipe)  # refused before the data are read
    inputs = collect_inputs(recipe, session.reporter, session.accelerator)
    run = prepare_run(session, inputs, recipe.train.precision, fresh=True)
    if session.main:
        peak = run.peak_memory()
        session.reporter.say(memory_watch.peak_line(peak, session.device))
        storage = Format.from_recipe(inputs.recipe, run.trainable.loaded.dtype).storage
        if line := memory_watch.published_line(inputs.files, peak, storage):
            session.reporter.say(line)
        chosen = {"learning_rate": "auto"} if recipe.train.learning_rate == "auto" else {}
        environment = {**run.environment(), "forecast": peak.parts(), **chosen}
        create_folder(session.folder, inputs.recipe, environment, run.data_record().to_json(), run.collected_files())
    session.accelerator.wait_for_everyone()
    with session.lock():
        _train(session, run)


def _resume(session: Session, recipe: Recipe, *, compare: bool = False) -> None:
    """Go on with the session's run as ``recipe`` says, or leave it as it is if it is complete.

    With ``compare``, data and model are compared with the run's even if it is complete; else they may be gone by then.
    """
    folder = session.folder
    past = ResumeState.read(folder)
    recipe = past.keeping_choices(recipe)
    check_same_step(session.accelerator, past.step, folder)
    for line in resume_checks.check_recipe(folder, past.recipe, recipe):
        session.note(line)
    resume_checks.check_length(folder, past.step, past.steps(recipe))
    if past.checkpoint and past.is_complete(recipe):
        if compare:
            recipe = _same_inputs(session, past, recipe).recipe
        session.reporter.say(say("training.run.complete", step=past.step, key=_key_for_more(past, recipe)))
        if session.main:
            _end_again(session, past.step, recipe)
    else:
        _go_on(session, past, recipe)


def _key_for_more(past: ResumeState, recipe: Recipe) -> str:
    """Return the key that a complete run stopped by."""
    if past.step < past.steps(recipe):
        return "train.patience"
    return "train.max_steps" if past.step == recipe.train.max_steps else "train.epochs"


def _end_again(session: Session, step: int, recipe: Recipe) -> None:
    """Publish the adapter of a complete run, and record its end.

    Nothing changes unless a kill came before the end was recorded, or another ``train.patience`` chooses another
    adapter.
    """
    folder = session.folder
    with refusals_explained(folder):
        chosen = chosen_checkpoint(folder, step, recipe.train.patience)
        publish_adapter(chosen, folder / ADAPTER_FOLDER)
        ends = [event for event in read_events(folder) if event["event"] == "end"]
        same = bool(ends) and ends[-1].get("step") == step and ends[-1].get("adapter_step") in {None, chosen.step}
        if same and json_object(folder / OUTCOME).get("state") != "running":
            return
        session.reached.step = session.reached.steps = step
        with session.training():
            if not same:  # else a kill came between the end and its outcome
                _record_end(folder, recipe, step, chosen.step)
    _report(session)


def _record_end(folder: Path, recipe: Recipe, step: int, adapter_step: int) -> None:
    update_recipe(folder, recipe)
    log = EventLog(folder)
    try:
        log.write("end", time=log.seconds, step=step, adapter_step=adapter_step)
    finally:
        log.close()


def _go_on(session: Session, past: ResumeState, recipe: Recipe) -> None:
    """Check that nothing relevant has changed, and train from the step at which ``past`` ends."""
    check_trackers(recipe)
    sample_schema(recipe)
    inputs = _same_inputs(session, past, recipe)
    chosen = past.micro_tokens if recipe.train.micro_tokens == "auto" else None
    run = prepare_run(
        session,
        inputs,
        past.precision,
        fresh=past.checkpoint is None,
        micro_tokens=chosen,
        may_pack=past.packed,
        targets=past.targets,
    )
    before = {"shares_rows": past.environment.get("shares_rows")}
    resume_checks.check_basis(session.folder, before, {"shares_rows": run.trainable.capabilities.shares_rows})
    for line in machine_changes(past.environment, describe_machine(session.device)):
        session.note(say("training.run.machine_changed", change=line))
    if past.packed and not run.loop.memory.packed:
        session.note(say("training.run.no_longer_packed"))
    processes = session.accelerator.num_processes
    if past.state.get("processes", processes) != processes:
        session.note(say("training.run.processes_changed", now=processes, before=past.state["processes"]))
    session.accelerator.wait_for_everyone()  # all have read what is changed from here on
    if session.main:
        with refusals_explained(session.folder):
            for line in past.set_aside_faulty():
                session.note(line)
            update_recipe(session.folder, inputs.recipe)
    _train(session, run, past.checkpoint)


def _same_inputs(session: Session, past: ResumeState, recipe: Recipe) -> RunInputs:
    """Collect the inputs of a run. Raises RunError if they differ from those it began with."""
    recipe = pinned(session.folder, recipe, fingerprints_in(past.basis), session.note)
    inputs = collect_inputs(recipe, session.reporter, session.accelerator, resumed=True)
    inputs = with_recorded_reference(with_recorded(inputs, session.folder), session.folder)
    resume_checks.check_basis(session.folder, past.basis, {**inputs.basis, **fingerprints_as(past.basis, inputs.files)})
    return inputs


def _train(session: Session, run: PreparedRun, checkpoint: Checkpoint | None = None) -> None:
    """Train from ``checkpoint``, or from the start, to the end of the plan, and publish the adapter."""
    recipe, loop = run.inputs.recipe, run.loop
    if recipe.log.trackers:
        tracked = TrackedReporter(session.reporter, session.accelerator, recipe, session.folder)
        session = replace(session, reporter=tracked)
    memory = memory_watch.MemoryWatch(run.pass_need(), session.device)
    for line in filter(None, (memory.forecast_warning(), warmup_note(loop.plan.steps, recipe.train))):
        session.note(line)
    recorder = Recorder(session, run, memory, make_validator(run, main=session.main))
    with session.training(), session.stop.finishing_steps():
        try:
            recorder.begin(checkpoint, session.notes)
            session.reached.step, session.reached.steps = recorder.step, loop.plan.steps
            session.reporter.started(session.folder, recorder.step, loop.plan.steps, recipe.train.log_every)
            with peer_failures_explained(session.accelerator, session.command), memory.explained(session.command):
                recorder.catch_up()
                if not recorder.complete:
                    loop.run(recorder.step, recorder)
            if not recorder.complete:
                reason = session.stop.reason or say("training.run.another_process")
                raise Interrupted("training.run.stopped", reason=reason, step=recorder.step, command=session.command)
            recorder.finish()
        finally:
            session.reporter.ended()
            recorder.close()
            if session.main:
                if recipe.preference and (note := chosen_note(read_events(session.folder))):
                    session.reporter.say(note)
                _report(session)


def _report(session: Session) -> None:
    """Write the run's report. A run does not fail because its report cannot be written."""
    try:
        session.reporter.say(say("training.run.report", path=write_report(session.folder)))
    except InputError as error:
        session.reporter.say(say("training.run.no_report", error=error))
