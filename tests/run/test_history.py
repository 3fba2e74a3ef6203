"""There is one best checkpoint: training, rotation, `--checkpoint best` and the reports agree on it."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.damage import flip
from tests.faults.small import save
from weitune import Run
from weitune.cli.shared.dashboard import Dashboard
from weitune.errors import RunError
from weitune.recipe.load import build_recipe, dump_recipe
from weitune.report.comparison import results
from weitune.report.run_record import RunRecord
from weitune.report.run_report import run_report
from weitune.run.checkpoint import list_checkpoints
from weitune.run.events import typed_event
from weitune.run.history import MovingAverage, best_of, finite
from weitune.run.rotation import best_checkpoint, rotate
from weitune.training.validation_history import ValidationHistory, chosen_checkpoint

LOSSES = st.sampled_from([1.0, 1.5, 2.0, 2.5, math.nan, math.inf, None])
"""Few values, so that ties are frequent; None: a checkpoint without an evaluation."""


def specification(history: list[tuple[int, float | None]]) -> int | None:
    """Return the first step at which the lowest finite loss was found."""
    best = None
    for step, loss in history:
        if loss is not None and math.isfinite(loss) and (best is None or loss < best[1]):
            best = step, loss
    return best[0] if best else None


@given(st.lists(LOSSES, min_size=1, max_size=9), st.integers(1, 3), LOSSES, st.booleans())
@settings(max_examples=40)
def test_all_agree_on_the_best_of_any_history(
    losses: list[float | None], keep: int, before: float | None, shuffled: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        recipe = build_recipe({"model": "m", "data": ["d.json"]})
        (run / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        validated, dashboard, events = ValidationHistory(), Dashboard(), []
        if before is not None:  # before the first step: there is no checkpoint of that
            validated.add(0, before)
            events.append({"event": "validation", "step": 0, "loss": before})
        history = [(10 * k, loss) for k, loss in enumerate(losses, 1)]
        for step, loss in history:
            if loss is not None:
                validated.add(step, loss)
                events.append({"event": "validation", "step": step, "loss": loss})
            save(run, step, validated.state(step)["metric"])
            rotate(run, keep)
        (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        for event in events:
            dashboard.feed(typed_event(event))

        wanted = specification(history)
        last = history[-1][0]
        found = best_of(pair for pair in validated.losses if pair[0] > 0)
        assert (found[0] if found else None) == wanted
        assert best_of(reversed(history) if shuffled else history) == found
        best = best_checkpoint(list_checkpoints(run))
        assert (best.step if best else None) == wanted
        assert chosen_checkpoint(run, last, patience=2).step == (last if wanted is None else wanted)
        assert chosen_checkpoint(run, last, patience=None).step == last
        record = RunRecord.read(run)
        assert (record.best[0] if record.best else None) == wanted
        (step,) = (row[1] for row in results([record]) if row[0] == "at step")
        assert step == ("–" if wanted is None else str(wanted))
        if wanted is None:
            with pytest.raises(RunError, match="none is known as the best"):
                Run(run).adapter_folder("best")
        else:
            assert Run(run).adapter_folder("best") == run / f"checkpoint-{wanted}"
            assert f"at step {wanted}<" in run_report(record)
        if (shown := validated.best()) is not None:  # while a run trains, the model before the first step counts too
            assert f"at step {shown[0]}" in "".join(dashboard.evaluation())
        newest = [step for step, _ in history][-keep:]
        assert Run(run).checkpoints() == sorted({*newest, *([] if wanted is None else [wanted])})


def test_the_first_of_equals_is_kept_when_newer_ones_are_as_good(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, 2.0)
        rotate(tmp_path, 1)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [1, 4]


def test_a_best_one_that_has_rotted_is_nobodys_best(tmp_path: Path) -> None:
    import random

    for step, metric in ((1, 1.0), (2, 3.0), (3, 2.0), (4, 2.0)):
        save(tmp_path, step, metric)
    flip(tmp_path / "checkpoint-1" / "adapter_model.safetensors", random.Random(0))
    best = best_checkpoint(list_checkpoints(tmp_path))
    assert best is not None
    assert best.step == 3
    assert chosen_checkpoint(tmp_path, 4, patience=1).step == 3
    recipe = build_recipe({"model": "m", "data": ["d.json"]})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert Run(tmp_path).adapter_folder("best") == tmp_path / "checkpoint-3"
    with pytest.raises(RunError, match=r"checkpoint-1' is damaged: adapter_model\.safetensors is not what was written"):
        Run(tmp_path).adapter_folder(1)
    rotate(tmp_path, 1)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [3, 4]


@pytest.mark.parametrize("value", [None, math.nan, -math.inf, True, "1.0", [1.0]])
def test_what_is_no_finite_number_is_no_loss(value: object) -> None:
    assert finite(value) is None
    assert best_of([(1, value)]) is None
    assert best_of([(1, value), (2, 3)]) == (2, 3.0)


def test_the_average_is_free_of_its_start() -> None:
    average, values = MovingAverage(), []
    for loss in (0.0, 1.0):
        average.add(loss)
        values.append(average.value)
    assert values == [0.0, pytest.approx(1 / 1.9)]
