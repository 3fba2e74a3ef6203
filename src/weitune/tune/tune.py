"""Search a recipe's settings: try some on a part of its steps, and write the recipe that came out best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weitune.errors import Interrupted, RecipeError, RunError
from weitune.files.json_files import leaves
from weitune.messages import say
from weitune.model.load.fingerprint import fingerprints_as
from weitune.progress import Progress
from weitune.recipe.first_rate import first_rate_of
from weitune.recipe.load import dump_recipe
from weitune.recipe.schema import TAKEN_FROM_BASE, Lora, Recipe
from weitune.run.lock import run_lock
from weitune.run.machine import machine_changes
from weitune.run.names import EVENTS
from weitune.shell import shell_command
from weitune.training.build import load_base
from weitune.training.inputs import RunInputs, collect_inputs
from weitune.training.optim import learning_rate
from weitune.training.reporter import Reporter
from weitune.training.resume.resume_checks import MAY_CHANGE
from weitune.training.resume.resume_state import precision_in
from weitune.training.signals import StopRequest, heeding_stop_file, stop_requests
from weitune.tune import folder as folders
from weitune.tune.folder import SETTINGS, Settings
from weitune.tune.page import reasons, tune_page
from weitune.tune.search import FEWEST_STEPS, Candidate, Search, Trial, epochs_cut_off, ranked
from weitune.tune.trials import Outcome, Trials

HELD_OUT = 0.05
"""The part of the data that is held out if the recipe has no ``validation``."""
Tried = Callable[[Outcome], None]


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found."""

    folder: Path
    best: Candidate
    loss: float
    outcomes: Sequence[Outcome]


class View(Reporter):
    """What a search tells whoever started it; every callback does nothing by default."""

    def trying(self, trial: Trial, number: int, trials: int) -> Progress | None:
        """Return a function to call with (steps done, steps in all) while a trial runs."""
        return None

    def tried(self, outcome: Outcome) -> None:
        """Called when a trial is done."""


def tune(
    recipe: Recipe,
    folder: Path,
    *,
    also: Sequence[str] = (),
    budget: float = 1.0,
    view: View | None = None,
    device: str | None = None,
    stop: StopRequest | None = None,
) -> Found:
    """Search the settings of ``recipe`` in a new ``folder``.

    Raises InputError (and leaves no folder) if the recipe, the data, the model or the folder are not in order,
    Interrupted after a stop, and otherwise what training raises.
    """
    held_out = recipe.validation is None
    recipe = _searchable(recipe, also)
    view = view or View()
    with _heeding(folder, stop) as asked:
        inputs = collect_inputs(recipe, view)
        if "epochs" in also and epochs_cut_off(inputs.recipe, len(inputs.examples), also):
            raise RecipeError("tune.tune.epochs_cut_off", steps=recipe.train.max_steps)
        _check_length(Search(inputs.recipe, len(inputs.examples), 1.0, also, budget), view)
        settings = Settings(list(also), budget, inputs.basis, held_out=held_out, recipe=_deciding(inputs.recipe))
        folders.create(folder, inputs.recipe, settings)
        return _search(inputs, folder, settings, view, device, asked)


def resume(
    folder: Path, *, view: View | None = None, device: str | None = None, stop: StopRequest | None = None
) -> Found:
    """Go on with the search in ``folder``; trials that are done are not made again.

    Raises RunError if it holds none, or if data, model or recipe are not those that it began with.
    """
    recipe, settings = folders.read(folder)
    view = view or View()
    with _heeding(folder, stop) as asked:
        inputs = collect_inputs(recipe, view, resumed=True)
        basis = {**inputs.basis, **fingerprints_as(settings.basis, inputs.files)}
        before, now = dict(leaves(settings.basis)), dict(leaves(basis))
        if settings.recipe:
            recorded, decided = dict(leaves(settings.recipe)), dict(leaves(_deciding(recipe)))
            before.update(recorded)
            now.update({key: decided.get(key) for key in recorded})  # a later version may have more keys
        if changed := sorted(key for key in {**before, **now} if before.get(key) != now.get(key)):
            raise RunError("tune.tune.not_the_same", folder=folder, changed=", ".join(changed))
        return _search(inputs, folder, settings, view, device, asked)


@contextmanager
def _heeding(folder: Path, stop: StopRequest | None) -> Iterator[StopRequest]:
    """Handle signals and the stop file in ``folder`` while the block searches. Raises Interrupted after a stop."""
    with stop_requests(stop) as asked:
        try:
            with heeding_stop_file(folder, asked):
                yield asked
        except KeyboardInterrupt:
            reason = asked.reason or say("training.session.keyboard")
            if (folder / SETTINGS).is_file():
                raise Interrupted("tune.tune.stopped", reason=reason, command=_command(folder)) from None
            raise Interrupted("training.session.stopped_before_folder", reason=reason) from None


def _command(folder: Path) -> str:
    return f"`{shell_command('tune', '--resume', folder)}`"


def _searchable(recipe: Recipe, also: Sequence[str]) -> Recipe:
    """Return ``recipe`` with rows to judge by, and without what a search does not use."""
    if recipe.train.shard:
        raise RecipeError("tune.tune.not_sharded")
    if recipe.preference:
        raise RecipeError("tune.tune.no_preference")
    if "r" in also:
        _check_ranks(recipe.adapter)
    changed = {} if recipe.validation is not None else {"validation": HELD_OUT}
    return recipe.model_copy(update=changed)


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """Return what decides the losses of trials but not the fingerprints of data and base."""
    free = {key.removeprefix("train.") for key in MAY_CHANGE} - {"epochs", "max_steps"}
    return recipe.model_dump(mode="json", include={"train": set(type(recipe.train).model_fields) - free, "lora": True})


def _check_length(search: Search, view: View) -> None:
    """Note if the trials of ``search`` are too short to tell. Raises RecipeError if one of them learns nothing."""
    first = search.first()
    steps = min(trial.steps for trial in first)
    if steps >= FEWEST_STEPS:
        return
    train = search.recipe.train
    if not any(learning_rate(step, steps, train) for step in range(steps)):
        raise RecipeError("tune.tune.never_learns", ratio=train.warmup_ratio, count=steps)
    view.say(say("tune.tune.few_steps", count=steps))


def _check_ranks(lora: Lora | None) -> None:
    """Raise RecipeError unless adapters of several ranks can be compared."""
    if lora is None:
        raise RecipeError("tune.tune.no_rank")
    if lora.init_from:
        raise RecipeError("tune.tune.rank_of_another")
    if lora.init in TAKEN_FROM_BASE:
        raise RecipeError("tune.tune.rank_taken_from_base", init=lora.init)


def _search(
    inputs: RunInputs, folder: Path, settings: Settings, view: View, device: str | None, stop: StopRequest
) -> Found:
    recipe = inputs.recipe
    if recipe.keep is not None:
        view.say(say("tune.page.reason_keep"))
    with run_lock(folder):
        done = {outcome.trial: outcome for outcome in folders.outcomes(folder)}
        loaded = load_base(_keeping_precision(recipe, settings.environment), device)
        width, plan = loaded.model.config.get_text_config().hidden_size, inputs.plan
        guess = first_rate_of(recipe, width, plan.steps, plan.steps_per_epoch)
        search = Search(recipe, len(inputs.examples), guess, settings.also, settings.budget)
        trials = Trials(loaded, inputs)
        waiting = search.first()
        _settle(trials, waiting, folder, settings, view)
        past: list[dict[Candidate, float]] = []
        while waiting:
            losses: dict[Candidate, float] = {}
            for number, trial in enumerate(waiting, 1):
                outcome = done.get(trial)
                if outcome is None:
                    with stop.finishing_steps():
                        outcome = trials.run(trial, stop, view.trying(trial, number, len(waiting)))
                    if outcome is not None:
                        folders.append(folder, outcome)
                        done[trial] = outcome
                    if outcome is None or stop:
                        raise Interrupted("tune.tune.stopped", reason=stop.reason, command=_command(folder))
                view.tried(outcome)
                losses[trial.candidate] = outcome.loss
            past.append(losses)
            waiting = search.after(past)
        return _write(folder, search, past[-1], list(done.values()), held_out=settings.held_out)


def _keeping_precision(recipe: Recipe, environment: Mapping[str, Any]) -> Recipe:
    """Return ``recipe`` with the precision that ``environment`` records, if it records one."""
    precision = precision_in(environment)
    if precision == "auto":
        return recipe
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})})


def _settle(trials: Trials, first: Sequence[Trial], folder: Path, settings: Settings, view: View) -> None:
    """Resolve once how all trials are computed, and write it down; of a search that goes on, say what has changed.

    Raises RunError if the trials to come would be laid out otherwise than those that are done.
    """
    before = settings.environment
    now = trials.settle(max(trial.candidate.r or 0 for trial in first) or None, before)
    if not before:  # the search is new, or of a version that did not record it
        folders.write(folder, replace(settings, environment=now))
        return
    if before.get("shares_rows") != now["shares_rows"]:
        raise RunError("tune.tune.not_the_same", folder=folder, changed="shares_rows")
    for line in machine_changes(before, now):
        view.say(say("training.run.machine_changed", change=line))
    if before.get("packed") and not now["packed"]:
        view.say(say("training.run.no_longer_packed"))


def _write(
    folder: Path, search: Search, losses: dict[Candidate, float], outcomes: list[Outcome], *, held_out: bool
) -> Found:
    recipe = search.recipe
    best = ranked(losses)[0]
    if losses[best] == float("inf"):
        raise RunError("tune.tune.nothing_learned", path=folder / EVENTS)
    told = reasons(recipe, best, losses, outcomes, held_out=held_out)
    text = "".join(f"# {line}\n" for line in told) + "\n" + dump_recipe(search.found(best))
    folders.publish_found(folder, text, tune_page(recipe, best, losses, outcomes, held_out=held_out))
    return Found(folder, best, losses[best], outcomes)
