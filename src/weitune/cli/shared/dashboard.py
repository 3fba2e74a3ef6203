"""The picture of a run while it trains: a bar, the figures of the last step, and the last evaluation.

    ━━━━━━━━━━━━━━━━━━━━━━━━───────── 128/702   9.80 s/step   1 h 33 min left
    loss 4.512 (smoothed 4.570)   lr 8.2e-05   112 tokens/s   4.33 GB
    step 100: validation loss 4.421, perplexity 83.2; best 4.421 at step 100
    你是谁？  →  我是甄嬛，家父是大理寺少卿甄远道。

It is fed with events as ``events.jsonl`` has them, by the process that trains or by one that watches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from weitune.cli.shared.terminal import rate
from weitune.messages import say
from weitune.messages.quantities import duration_text, size_text
from weitune.run.history import MovingAverage, best_of

_SHORT = 100
"""Characters of a sample that a line shows."""


class Dashboard:
    """What is known of a run; rich draws it."""

    def __init__(self, steps: int = 0) -> None:
        self.steps = steps
        self.step = 0
        self.ended = ""
        """Why no further step comes, once that is so."""
        self.gone = ""
        """Why the run has no process, if it ended without saying so."""
        self._note = ""
        self._last: Mapping[str, Any] = {}
        self._evaluation: Mapping[str, Any] = {}
        self._best: tuple[int, float] | None = None
        self._loss, self._pace = MovingAverage(), MovingAverage()

    def feed(self, event: Mapping[str, Any]) -> None:
        kind = event.get("event")
        self._note = ""
        if kind in {"start", "resume"}:
            self.steps, self.step, self.ended = int(event.get("steps", 0)), int(event.get("step", 0)), ""
            self.gone = ""
        elif kind == "step":
            self.step, self._last = int(event["step"]), event
            self._loss.add(event.get("loss"))
            self._pace.add(event.get("step_seconds"))
        elif kind == "validation":
            self._evaluation = event
            latest = int(event["step"]), event.get("loss")
            self._best = best_of([*([self._best] if self._best else []), latest])
        elif kind in {"end", "stop", "not finite"}:
            self.ended = _ending(event)
        elif kind == "gone":
            self.ended, self.gone = say("cli.dashboard.gone"), str(event.get("reason"))

    def note(self, text: str) -> None:
        self._note = text

    def __rich__(self) -> RenderableType:
        lines: list[RenderableType] = [self._bar()]
        lines += [
            Text(line, overflow="ellipsis", no_wrap=True) for line in (self.figures(), *self.evaluation()) if line
        ]
        return Group(*lines)

    def figures(self) -> str:
        """Return the figures of the last step in one line; empty before the first."""
        last = self._last
        if not last:
            return ""
        return say(
            "cli.dashboard.step",
            loss=_number(last.get("loss")),
            smoothed=_number(self._loss.value),
            learning_rate=_number(last.get("learning_rate"), ".2e"),
            tokens_per_second=_number(last.get("tokens_per_second"), ",.0f"),
            memory=size_text(last.get("memory_bytes") or 0, digits=2),
        )

    def evaluation(self) -> list[str]:
        """Return the last evaluation and its first sample; nothing before there was one."""
        last = self._evaluation
        if not last:
            return []
        values = {
            "step": last.get("step"),
            "loss": _number(last.get("loss"), ".4f"),
            "perplexity": _number(last.get("perplexity"), ",.2f"),
        }
        if self._best is None:
            line = say("cli.dashboard.validation", **values)
        else:
            best_step, best = self._best
            line = say("cli.dashboard.validation_and_best", **values, best=best, best_step=best_step)
        samples = (last.get("samples") or [])[:1]
        return [line, *(f"{short(sample.get('prompt'))}  →  {short(sample.get('answer'))}" for sample in samples)]

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


def _ending(event: Mapping[str, Any]) -> str:
    match event.get("event"):
        case "end":
            return say("cli.dashboard.finished")
        case "stop":
            return say("cli.dashboard.stopped_by", reason=event.get("reason"))
        case _:
            return say("cli.dashboard.not_finite")


def short(text: object) -> str:
    """Return ``text`` in one line of at most a hundred characters."""
    line = " ".join(str(text or "").split())
    return line if len(line) <= _SHORT else line[: _SHORT - 1] + "…"


def _number(value: object, form: str = ".3f") -> str:
    return format(value, form) if isinstance(value, int | float) else str(value)
