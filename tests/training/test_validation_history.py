"""The history of validation losses: the best of them, early stopping, and what a checkpoint keeps."""

from __future__ import annotations

import json

from weitune.training.validation_history import ValidationHistory


def test_patience_counts_from_the_first_of_equals() -> None:
    history = ValidationHistory([(0, 5.0), (10, 4.0), (20, 4.0)])
    assert history.best() == (10, 4.0)
    assert history.patience_exhausted(1)
    assert not history.patience_exhausted(2)
    assert not history.patience_exhausted(None)


def test_a_loss_that_is_not_finite_is_never_the_best() -> None:
    history = ValidationHistory()
    assert [history.add(step, loss) for step, loss in ((0, float("nan")), (5, 3.0), (10, float("inf")))] == [
        False, True, False,
    ]  # fmt: skip
    assert ValidationHistory.from_state(json.loads(json.dumps(history.state(10)))) == history
    assert history.state(5)["metric"] == 3.0
    assert history.state(10)["metric"] is None


def test_of_a_checkpoint_from_before_there_was_validation() -> None:
    assert ValidationHistory.from_state({"metric": None}).losses == []
