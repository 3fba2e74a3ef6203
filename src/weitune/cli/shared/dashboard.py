"""The display of a run while it trains: a bar, the figures of the last step, and the last evaluation.

    ━━━━━━━━━━━━━━━━━━━━━━━━───────── 128/702   9.80 s/step   1 h 33 min left
    loss 4.512 (smoothed 4.570)   lr 8.2e-05   112 tokens/s   4.33 GB
    step 100: validation loss 4.421, perplexity 83.2; best 4.421 at step 100
    你是谁？  →  我是甄嬛，家父是大理寺少卿甄远道。

The process that trains, or one that watches, feeds it the run's events.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from weitune.cli.shared.terminal import rate
from weitune.messages import say
from weitune.messages.quantities import duration_text, size_text
from weitune.messages.translate import translated
from weitune.run.events import Event, Step, Validation
from weitune.run.history import MovingAverage, best_of, finite
from weitune.run.preference_figures import ChosenAnswers, summary

_SHORT = 100
"""Characters of a sample that are shown."""


class Dashboard:
    """The state of a run, which rich draws."""

    def __init__(self, steps: int = 0) -> None:
        self.steps = steps
        self.step = 0
        self.ended = ""
        """Why training has ended; empty while it has not."""
        self.gone = ""
        """Why the run has no process, if no event says that it has ended."""
        self._note = ""
        self._forget()

    def _forget(self) -> None:
        self._last: Step | None = None
        self._evaluation: Validation | None = None
        self._best: tuple[int, float] | None = None
        self._loss, self._pace = MovingAverage(), MovingAverage()
        self._chosen = ChosenAnswers()

    def feed(self, event: Event) -> None:
        self._note = ""
        match event:
            case Event(kind="start" | "resume"):
                if event.kind == "start":  # of a run, or of its events, which are read again
                    self._forget()
                self.steps, self.step, self.ended, self.gone = event.steps or 0, event.step or 0, "", ""
            case Step():
                self.step, self._last = event.step or self.step, event
                self._loss.add(finite(event.loss))
                self._pace.add(finite(event.step_seconds))
            case Validation():
                self._evaluation = event
                latest = [(event.step, event.loss)] if event.step is not None else []
                self._best = best_of([*([self._best] if self._best else []), *latest])
            case Event(kind="end"):
                self.ended = say("cli.dashboard.finished")
            case Event(kind="stop"):
                self.ended = say("cli.dashboard.stopped_by", reason=translated(str(event.reason), "training"))
            case Event(kind="not finite"):
                self.ended = say("cli.dashboard.not_finite")
            case Event(kind="gone"):
                self.ended, self.gone = say("cli.dashboard.gone"), str(event.reason)
        self._chosen.add(event)

    def note(self, text: str) -> None:
        self._note = text

    def __rich__(self) -> RenderableType:
        lines: list[RenderableType] = [self._bar()]
        lines += [
            Text(line, overflow="ellipsis", no_wrap=True)
            for line in (self.figures(), self.preferences(), *self.evaluation())
            if line
        ]
        if note := self._chosen.note():
            lines.append(Text(note))
        return Group(*lines)

    def figures(self) -> str:
        """Return the figures of the last step in one line; empty before the first."""
        last = self._last
        if last is None:
            return ""
        return say(
            "cli.dashboard.step",
            loss=_number(last.loss),
            smoothed=_number(self._loss.value),
            learning_rate=_number(last.learning_rate, ".2e"),
            tokens_per_second=_number(last.tokens_per_second, ",.0f"),
            memory=size_text(last.memory_bytes or 0, digits=2),
        )

    def preferences(self) -> str:
        """Return the rewards of the last step; empty if it has none."""
        return summary(self._last.figures) if self._last is not None else ""

    def evaluation(self) -> list[str]:
        """Return the last evaluation and its first sample; nothing before there was one."""
        last = self._evaluation
        if last is None:
            return []
        told = [f"{short(sample.prompt)}  →  {short(sample.answer)}" for sample in (last.samples or ())[:1]]
        if last.kind == "samples":
            return told
        perplexity = perplexity_text(last.perplexity, last.figures)
        values = {"step": last.step, "loss": _number(last.loss, ".4f"), "perplexity": perplexity}
        if self._best is None:
            line = say("cli.dashboard.validation", **values)
        else:
            best_step, best = self._best
            line = say("cli.dashboard.validation_and_best", **values, best=best, best_step=best_step)
        return [text for text in (line, summary(last.figures), *told) if text]

    def _bar(self) -> Table:
        left = duration_text(self._pace.value * (self.steps - self.step)) if self._pace.value and not self.ended else ""
        pace = rate(1 / self._pace.value, "step") if self._pace.value else ""
        table = Table.grid(padding=(0, 2))
        table.add_row(
            ProgressBar(max(1, self.steps), self.step, width=30),
            f"{self.step}/{self.steps}",
            Text(pace, style="dim"),
            self.ended or self._note or (say("cli.dashboard.left", duration=left) if left else ""),
        )
        return table


def short(text: object) -> str:
    """Return ``text`` in one line of at most a hundred characters."""
    line = " ".join(str(text or "").split())
    return line if len(line) <= _SHORT else line[: _SHORT - 1] + "…"


def perplexity_text(perplexity: float | None, figures: Mapping[str, float]) -> str:
    """Return a perplexity with its name: beside figures of preferences, it is that of the chosen answers."""
    value = _number(perplexity, ",.2f")
    if figures:
        return say("cli.dashboard.perplexity_of_chosen", value=value)
    return say("cli.dashboard.perplexity", value=value)


def _number(value: object, form: str = ".3f") -> str:
    return format(value, form) if isinstance(value, int | float) else str(value)
