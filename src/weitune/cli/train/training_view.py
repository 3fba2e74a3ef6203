"""What a person sees while a run trains: a few lines, then a dashboard, and a log line now and then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from weitune.cli.shared.dashboard import Dashboard, perplexity_text, short
from weitune.cli.shared.export_support import export_support
from weitune.cli.shared.status import tell
from weitune.cli.shared.terminal import console
from weitune.cli.train.progress_view import ProgressView
from weitune.messages import say
from weitune.model.file_names import ADAPTER_FOLDER
from weitune.model.load.locate import ModelFiles
from weitune.model.load.tokenizer import TokenizerFraming
from weitune.progress import Progress, enter_phase
from weitune.recipe.schema import Recipe
from weitune.run.events import Event, Validation, read_events, typed_event
from weitune.run.preference_figures import fields_of, summary
from weitune.training.loop import StepRecord
from weitune.training.validation_history import Evaluation


class TrainingView(ProgressView):
    """Draw a run on standard error. Without a terminal there is no picture, only the lines."""

    def __init__(self) -> None:
        super().__init__()
        self._dashboard = Dashboard()
        self._every = 10

    def beginning(self, folder: Path) -> None:
        tell(run=str(folder))

    def opened(self, recipe: Recipe, files: ModelFiles, framed: TokenizerFraming) -> None:
        """Say what the run can become once it is trained."""
        for line in export_support(recipe, files, framed).lines():
            self.say(line)

    def answering(self) -> Progress:
        enter_phase("evaluating")
        return self._bar(say("cli.training_view.answering_prompts"), "token")

    def referring(self) -> Progress:
        enter_phase("evaluating")
        return self._bar(say("cli.training_view.measuring_reference"), "group")

    def started(self, folder: Path, done: int, steps: int, log_every: int) -> None:
        self._shown.close()
        enter_phase("training", done, steps)
        self._every = log_every
        self._dashboard.feed(Event("start", done, steps))
        for event in map(typed_event, read_events(folder) if done else ()):
            if isinstance(event, Validation):  # the best so far may be among them
                self._dashboard.feed(event)
        if done:
            self.say(say("cli.training_view.resumed", folder=folder, step=done + 1, steps=steps))
        else:
            self.say(say("cli.training_view.started", folder=folder, steps=steps))
        if console().is_terminal:
            from rich.live import Live

            self._shown.enter_context(Live(self._dashboard, console=console(), refresh_per_second=4, transient=True))

    def stepped(self, record: StepRecord) -> None:
        """Move the dashboard; print a log line every so often."""
        self._dashboard.feed(typed_event({"event": "step", **fields_of(record)}))
        steps = self._dashboard.steps
        enter_phase("training", record.step, steps)
        if record.step % self._every == 0 or record.step in {1, steps}:
            self.say(say("cli.training_view.step", steps=steps, record=record))
            self._say_figures(record.figures)

    def evaluating(self) -> Progress:
        def told(done: int, total: int | None) -> None:
            enter_phase("evaluating", done, total)
            self._dashboard.note(say("cli.training_view.validating", done=done, total=total))

        return told

    def evaluated(self, evaluation: Evaluation) -> None:
        """Print the validation loss and the first sample answer."""
        self._dashboard.feed(typed_event(evaluation.event()))
        if evaluation.measured:
            self._say_loss(evaluation)
        for sample in evaluation.samples[:1]:
            self.say(f"  {short(sample.prompt)}  →  {short(sample.answer)}")

    def _say_loss(self, evaluation: Evaluation) -> None:
        perplexity = perplexity_text(evaluation.perplexity, evaluation.figures)
        values = {"step": evaluation.step, "loss": evaluation.loss, "perplexity": perplexity}
        if evaluation.best and evaluation.step:
            self.say(say("cli.training_view.validation_best", **values))
        else:
            self.say(say("cli.training_view.validation", **values))
        self._say_figures(evaluation.figures)

    def _say_figures(self, figures: Mapping[str, float]) -> None:
        if line := summary(figures):
            self.say(f"  {line}")

    def saved(self, folder: Path) -> None:
        if folder.name == ADAPTER_FOLDER:  # checkpoints are written beside the next steps
            enter_phase("writing")
        self.say(say("cli.training_view.saved", folder=folder))

    def ended(self) -> None:
        self._shown.close()
