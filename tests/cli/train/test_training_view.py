"""What the terminal shows of a run that goes on."""

from __future__ import annotations

from pathlib import Path

from weitune.cli.train.training_view import TrainingView
from weitune.run.events import EventLog
from weitune.run.names import EVENTS


def test_the_best_validation_may_be_one_before_the_run_was_stopped(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for step, loss in ((0, 5.0), (150, 4.36)):
        log.write("validation", time=1.0, step=step, loss=loss, perplexity=1.0, learned_tokens=1, seconds=1, samples=[])
    log.close()
    assert (tmp_path / EVENTS).is_file()
    with TrainingView() as view:
        view.started(tmp_path, 150, 300, 10)
        assert view._dashboard._best == (150, 4.36)
