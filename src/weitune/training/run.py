"""A run, from its recipe to its adapter: gather everything, check it, make the folder, loop, publish.

Whatever can be wrong with the user's input is found before the run's folder exists; and when a run goes on, whatever is
not as it was is found before anything of the run is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from weitune.data.show.preview import parts as preview_parts
from weitune.errors import InputError, Interrupted
from weitune.files.publish import tidy
from weitune.forecast import memory_watch
from weitune.forecast.memory_estimate import PassSize
from weitune.forecast.workload import Workload
from weitune.generate.run import Run
from weitune.messages import say
from weitune.model.file_names import ADAPTER_FOLDER
from weitune.model.load.fingerprint import fingerprints_as
from weitune.model.lora.adapter import count_parameters
from weitune.model.lora.adapter_init import EVA_STEPS
from weitune.model.thread_contention import share_the_processor
from weitune.recipe.schema import Recipe
from weitune.report.run_report import write_report
from weitune.run.base_check import fingerprints_in, pinned, place_of_base
from weitune.run.checkpoint import publish_adapter
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
from weitune.run.data_record import DataRecord, ExamplePreview, ValidationSize
from weitune.run.disk_retry import refusals_explained
from weitune.run.lock import run_lock
from weitune.run.machine import describe_machine, machine_changes
from weitune.run.names import RECIPE
from weitune.shell import shell_command
from weitune.training.build import make_loop, make_trainable
from weitune.training.distributed.processes import (
    agreed,
    check_same_step,
    losses_of_peers_explained,
    make_accelerator,
    writes,
)
from weitune.training.inputs import RunInputs, check_stops, collect_inputs
from weitune.training.loop import Loop
from weitune.training.optim import warmup_note
from weitune.training.recorder import Recorder
from weitune.training.reporter import Reporter
from weitune.training.resume import resume_checks
from weitune.training.resume.resume_state import ResumeState
from weitune.training.signals import StopRequest, stop_requests
from weitune.training.trackers import TrackedReporter, check_trackers
from weitune.training.trainable import Trainable
from weitune.training.validation import make_validator
from weitune.training.validation_history import chosen_checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

_PREVIEWED = 3
"""Examples that the report shows as the model sees them."""


def train(
    recipe: Recipe,
    *,
    resume_existing: bool = False,
    reporter: Reporter | None = None,
    device: str | None = None,
    stop: StopRequest | None = None,
) -> Run:
    """Fine-tune as ``recipe`` says and return the finished run.

    With ``resume_existing``, a run that is in ``recipe.output`` already is gone on with, as :func:`resume` does, if it
    is the run of this recipe; so the same call may be made again after a crash. ``stop`` lets a program end the run
    from another thread, as SIGINT and SIGTERM do.

    Raises InputError (and leaves no folder) if the recipe, the data, the model or the output folder are not in order,
    RunError if disk or memory will not do, NonFiniteError if a loss or gradient is not finite, and Interrupted after a
    stop, with a checkpoint written if a step was done.
    """
    folder = output_folder(recipe)
    if resume_existing:
        check_named(recipe)
    else:
        check_free(folder)
    with _session(folder, reporter, stop, device, recipe.train.save_on_each_node) as session:
        # Decided once the processes have met: one that comes late would find the folder that another has just made.
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

    ``overrides`` (dotted name to value) may hold what :data:`.MAY_CHANGE` lists. A run that is
    complete stays as it is. Raises RunError if ``folder`` holds no run, if another process trains in it, or if recipe,
    data, model or plan are not those it began with, and otherwise what :func:`train` raises.
    """
    folder = Path(folder)
    check_run(folder)
    recipe = load_recorded(folder, overrides)
    with _session(folder, reporter, stop, device, recipe.train.save_on_each_node) as session, session.lock():
        _resume(session, recipe)
    return Run(folder)


@dataclass(frozen=True, slots=True)
class _Session:
    """One process at work on a run."""

    folder: Path
    reporter: Reporter
    stop: StopRequest
    accelerator: Accelerator
    device: str | None
    main: bool
    """Whether this process writes."""
    notes: list[str] = field(default_factory=list)
    """What is out of the ordinary about this start."""

    def sees(self, view: Callable[[], T]) -> T:
        """Return what ``view`` returns, or raise what it raises, where the run's folder is written: on all alike."""
        return agreed(self.accelerator, view if self.main else None)

    def note(self, line: str) -> None:
        """Say ``line`` and keep it for the events."""
        self.reporter.say(line)
        self.notes.append(line)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run's lock in the process that writes, and clear away what a killed one left.

        Raises RunError, on every process of the run, if another run's process holds it.
        """
        with ExitStack() as stack:
            self.sees(lambda: self._take_lock(stack))
            yield

    def _take_lock(self, stack: ExitStack) -> None:
        with refusals_explained(self.folder):
            lock = stack.enter_context(run_lock(self.folder))
            tidy(self.folder)
        if not lock.held:
            self.note(say("training.run.file_system_has_no"))
        if lock.abandoned:
            self.note(say("training.run.had_no_orderly_end", abandoned=lock.abandoned))


@contextmanager
def _session(
    folder: Path, reporter: Reporter | None, stop: StopRequest | None, device: str | None, each_node: bool
) -> Iterator[_Session]:
    """Heed signals while the block runs. Raises Interrupted if one comes before the first step."""
    share_the_processor()
    with stop_requests(stop) as asked:
        try:
            accelerator = make_accelerator(device)
            main = writes(accelerator, on_each_node=each_node)
            yield _Session(folder, reporter or Reporter(), asked, accelerator, device, main)
        except KeyboardInterrupt:
            left = f"go on with {_command(folder)}" if (folder / RECIPE).exists() else "nothing was written"
            raise Interrupted(
                "training.run.stopped_before_step_was", reason=asked.reason or "the keyboard", left=left
            ) from None


def _begin(session: _Session, recipe: Recipe) -> None:
    """Gather what a new run is made of, make its folder, and train."""
    check_trackers(recipe)
    parts = collect_inputs(recipe, session.reporter, session.accelerator)
    trainable = _load(session, parts, recipe.train.precision, fresh=True)
    loop = _make_loop(session, parts, trainable)
    largest = _largest_pass(parts, loop)
    if session.main:
        forecast = trainable.peak_memory(parts.recipe, largest, loop.memory.recompute)
        session.reporter.say(memory_watch.peak_line(forecast, trainable.loaded.device))
        environment = {**_environment(parts, trainable, loop), "forecast": forecast.parts()}
        create_folder(session.folder, parts.recipe, environment, _data_record(parts).to_json())
    session.accelerator.wait_for_everyone()
    with session.lock():
        _train(session, parts, trainable, loop, largest)


def _resume(session: _Session, recipe: Recipe, *, compare: bool = False) -> None:
    """Go on with the session's run as ``recipe`` says, or leave it as it is if it is complete.

    With ``compare``, data and model are compared with the run's even if it is complete; else they may be gone by then.
    """
    folder = session.folder
    past = ResumeState.of(folder)
    check_same_step(session.accelerator, past.step, folder)
    for line in resume_checks.check_recipe(folder, past.recipe, recipe):
        session.note(line)
    resume_checks.check_length(folder, past.step, past.steps(recipe))
    if past.checkpoint and past.is_complete(recipe):
        if compare:
            _same_parts(session, past, recipe)
        more = "train.epochs" if past.step == past.steps(recipe) else "train.patience"
        session.reporter.say(say("training.run.run_complete_after_steps", step=past.step, more=more))
        if session.main:
            with refusals_explained(folder):
                chosen = chosen_checkpoint(folder, past.step, recipe.train.patience)
                publish_adapter(chosen, folder / ADAPTER_FOLDER)
    else:
        _go_on(session, past, recipe)


def _load(session: _Session, parts: RunInputs, precision: str, *, fresh: bool) -> Trainable:
    """Load the weights and attach the adapter. Raises ModelError if they do not fit memory, data or recipe."""
    recipe = parts.recipe
    processes = session.accelerator.num_processes
    if recipe.train.shard:
        among = f"the base is divided among {processes} processes" if processes > 1 else "one process holds the base"
        session.reporter.say(say("training.run.train_shard", among=among))
    loaded = memory_watch.load_if_it_fits(
        parts.files, parts.tokenizer, precision if recipe.adapter else "fp32", session.device,
        recipe.train.storage, processes if recipe.train.shard else 1,
    )  # fmt: skip
    check_stops(loaded, parts.framing, session.reporter)
    steps = (parts.examples_of(step) for step in range(min(EVA_STEPS, parts.plan.steps)))
    trainable = make_trainable(
        loaded, recipe.adapter, seed=recipe.train.seed, base=recipe.model, steps=steps, fresh=fresh
    )  # fmt: skip
    if not trainable.capabilities.shares_rows:
        why = trainable.capabilities.why_not
        session.reporter.say(say("training.run.model_cannot_share_prefixes", why=why))
    elif not trainable.capabilities.plain_blocks:
        session.reporter.say(say("training.run.adapter_model_computed_own"))
    session.reporter.say(str(count_parameters(trainable.trained.model)))
    return trainable


def _make_loop(session: _Session, parts: RunInputs, trainable: Trainable, micro_tokens: int | None = None) -> Loop:
    adapter = parts.recipe.adapter
    return make_loop(
        trainable, parts.recipe.train, parts.examples, parts.plan, accelerator=session.accelerator,
        micro_tokens=micro_tokens, plus_ratio=adapter.plus_ratio if adapter else 1.0,
        longest=parts.longest,
    )  # fmt: skip


def _data_record(parts: RunInputs) -> DataRecord:
    """Return what the run's folder says about the data."""
    previewed = (parts.examples[k] for k in range(min(len(parts.examples), _PREVIEWED)))
    preview = [
        ExamplePreview(
            str(example.origin),
            [(part.text, part.kind) for part in preview_parts(example, parts.tokenizer, parts.framing)],
        )
        for example in previewed
    ]
    held = parts.validation
    validation = None if held is None else ValidationSize(len(held), int(held.supervised.sum()))
    return DataRecord(parts.prepared.report, preview, validation)


def _environment(parts: RunInputs, trainable: Trainable, loop: Loop) -> dict[str, Any]:
    loaded = trainable.loaded
    return {
        **describe_machine(loaded.device),
        "precision": str(loaded.dtype).removeprefix("torch."),
        "shares_rows": trainable.capabilities.shares_rows,
        "micro_tokens": loop.memory.micro_tokens,
        "recompute": loop.memory.recompute,
        **place_of_base(parts.recipe),
        "basis": parts.basis,
    }


def _go_on(session: _Session, past: ResumeState, recipe: Recipe) -> None:
    """Check that everything is as it was, and train from where ``past`` ends."""
    check_trackers(recipe)
    parts = _same_parts(session, past, recipe)
    trainable = _load(session, parts, past.precision, fresh=past.checkpoint is None)
    was = {"shares_rows": past.environment.get("shares_rows")}
    resume_checks.check_basis(session.folder, was, {"shares_rows": trainable.capabilities.shares_rows})
    machine = describe_machine(trainable.loaded.device)
    for line in machine_changes(past.environment, machine):
        session.note(say("training.run.last_bits_may_differ", line=line))
    processes = session.accelerator.num_processes
    if past.state.get("processes", processes) != processes:
        before = past.state["processes"]
        session.note(say("training.run.devices_instead_each_draws", processes=processes, before=before))
    session.accelerator.wait_for_everyone()  # all have read what is changed from here on
    if session.main:
        with refusals_explained(session.folder):
            for line in past.set_aside_faulty():
                session.note(line)
            update_recipe(session.folder, parts.recipe)
    chosen = past.micro_tokens if recipe.train.micro_tokens == "auto" else None
    loop = _make_loop(session, parts, trainable, chosen)
    _train(session, parts, trainable, loop, _largest_pass(parts, loop), past)


def _same_parts(session: _Session, past: ResumeState, recipe: Recipe) -> RunInputs:
    """Gather what the run is made of. Raises RunError if it is not what it was."""
    recipe = pinned(session.folder, recipe, fingerprints_in(past.basis), session.note)
    parts = collect_inputs(recipe, session.reporter, session.accelerator)
    resume_checks.check_basis(session.folder, past.basis, {**parts.basis, **fingerprints_as(past.basis, parts.files)})
    return parts


def _largest_pass(parts: RunInputs, loop: Loop) -> PassSize:
    return Workload.of(parts.examples, loop.plan, loop.layout, loop.memory.micro_tokens).largest


def _train(
    session: _Session,
    parts: RunInputs,
    trainable: Trainable,
    loop: Loop,
    largest: PassSize,
    past: ResumeState | None = None,
) -> None:
    """Train from where ``past`` ends, or from the start, to the end of the plan, and publish the adapter."""
    folder, train, plan = session.folder, parts.recipe.train, parts.plan
    if parts.recipe.log.trackers:
        tracked = TrackedReporter(session.reporter, session.accelerator, parts.recipe, folder)
        session = replace(session, reporter=tracked)
    need = trainable.pass_need(largest, loop.memory.recompute)
    memory = memory_watch.MemoryWatch(need, trainable.loaded.device)
    for line in filter(None, (memory.foreseen(), warmup_note(plan.steps, train))):
        session.note(line)
    state = {
        "steps": plan.steps,
        "micro_tokens": loop.memory.micro_tokens,
        "processes": session.accelerator.num_processes,
        "recipe": parts.recipe.model_dump(mode="json"),
        "basis": parts.basis,
    }
    journal = Recorder(
        folder, trainable.trained, loop, state=state, reporter=session.reporter, stop=session.stop, memory=memory,
        main=session.main, validator=make_validator(loop, parts, trainable, main=session.main),
    )  # fmt: skip
    with session.stop.finishing_steps():
        try:
            start = journal.begin(past.checkpoint if past else None, session.notes)
            session.reporter.started(folder, start, plan.steps, train.log_every)
            gone = losses_of_peers_explained(session.accelerator, _command(folder))
            with gone, memory.explained(_command(folder)):
                journal.catch_up()
                if not journal.complete:
                    loop.run(journal.step, journal)
            if not journal.complete:
                reason = session.stop.reason or "another process"
                raise Interrupted(
                    "training.run.stopped_after_step_go", reason=reason, step=journal.step, command=_command(folder)
                )
            journal.finish()
        finally:
            session.reporter.ended()
            journal.close()
            if session.main:
                _report(session)


def _report(session: _Session) -> None:
    """Write the run's report; a run does not fail for want of one."""
    try:
        session.reporter.say(say("training.run.report", write_report=write_report(session.folder)))
    except (OSError, InputError, ValueError, KeyError, TypeError) as error:
        session.reporter.say(say("training.run.no_report_could_written", error=error))


def _command(folder: Path) -> str:
    return f"`{shell_command('train', '--resume', folder)}`"
