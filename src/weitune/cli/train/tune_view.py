"""What a person sees of a search: a bar for the trial at hand, and a line for each that is done."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from weitune.cli.shared.terminal import console, progress
from weitune.messages import say
from weitune.progress import Progress
from weitune.tune.search import Trial
from weitune.tune.trials import Outcome
from weitune.tune.tune import View


class TuneView(View):
    """Draw a search on standard error."""

    def __init__(self) -> None:
        self._shown = ExitStack()

    def __enter__(self) -> TuneView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._shown.close()

    def say(self, line: str) -> None:
        console().print(line, markup=False)

    def preparing(self) -> Progress:
        return self._bar(say("cli.training_view.preparing_data"), "row")

    def trying(self, trial: Trial, number: int, trials: int) -> Progress:
        rate = trial.candidate.learning_rate
        return self._bar(say("cli.tune_view.trying", rung=trial.rung, number=number, trials=trials, rate=rate), "step")

    def tried(self, outcome: Outcome) -> None:
        """Print a line about a trial."""
        self._shown.close()
        self.say(say("cli.tune_view.tried", outcome=outcome, trial=outcome.trial, candidate=outcome.trial.candidate))

    def _bar(self, title: str, unit: str) -> Progress:
        self._shown.close()
        bar = self._shown.enter_context(progress(title, unit=unit))
        return bar.update
