"""What a person sees of a search: a bar for the trial at hand, and a line for each that is done."""

from __future__ import annotations

from weitune.cli.train.progress_view import ProgressView
from weitune.messages import say
from weitune.progress import Progress, enter_phase
from weitune.tune.search import Trial
from weitune.tune.trials import Outcome
from weitune.tune.tune import View


class TuneView(ProgressView, View):
    """Draw a search on standard error."""

    def trying(self, trial: Trial, number: int, trials: int) -> Progress:
        enter_phase("training")
        rate = trial.candidate.learning_rate
        return self._bar(say("cli.tune_view.trying", rung=trial.rung, number=number, trials=trials, rate=rate), "step")

    def tried(self, outcome: Outcome) -> None:
        """Print a line about a trial."""
        self._shown.close()
        self.say(say("cli.tune_view.tried", outcome=outcome, trial=outcome.trial, candidate=outcome.trial.candidate))
