"""Killed, or cut from power, at every file-system call of what a run writes: afterwards a good state is found."""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.layer import Killed, Layer, faults
from tests.faults.small import ADAPTER, is_intact, save
from weitune.errors import RunError
from weitune.files.publish import discard, publish_bytes, tidy
from weitune.recipe.load import build_recipe, dump_recipe, load_recipe
from weitune.run.checkpoint import Checkpoint, list_checkpoints, newest_good, publish_adapter
from weitune.run.create import create_folder, read_environment, update_recipe
from weitune.run.events import EventLog, read_events
from weitune.run.rotation import rotate

SEED = 20260131
RECIPE = build_recipe({"model": "m", "data": ["d.json"]})


def calls_of(work: Callable[[], object]) -> int:
    """Return how many calls ``work`` makes when nothing goes wrong."""
    with faults(Layer()) as layer:
        work()
    return len(layer.calls)


def killed_at_every_call(
    tmp_path: Path, prepare: Callable[[Path], Callable[[], object]], check: Callable[[Path], None], power_cut: bool
) -> int:
    """Kill what ``prepare`` returns at each of its calls, in a new folder each time; ``check`` looks at the folder."""
    whole = tmp_path / "whole"
    whole.mkdir()
    count = calls_of(prepare(whole))
    draw = random.Random(SEED)
    for n in range(1, count + 1):
        run = tmp_path / f"killed-{n}"
        run.mkdir()
        work = prepare(run)
        with faults(Layer(kill_at=n)) as layer, pytest.raises(Killed):
            work()
        if power_cut:
            layer.after_power_cut(run, draw)
        check(run)
    return count


@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power cut"])
class TestSave:
    def test_the_newest_good_is_the_one_before_or_the_new_one(self, tmp_path: Path, power_cut: bool) -> None:
        def prepare(run: Path) -> Callable[[], object]:
            save(run, 1, metric=0.5)
            save(run, 2)
            save(run, 3)
            return lambda: (save(run, 4), rotate(run, 2))

        def check(run: Path) -> None:
            checkpoint, faulty = newest_good(run)
            assert is_intact(checkpoint)
            assert checkpoint is not None
            assert checkpoint.step in {3, 4}
            assert not faulty
            assert is_intact(Checkpoint(run / "checkpoint-1", 1))  # the best
            tidy(run)
            save(run, 5)
            rotate(run, 2)
            assert [c.step for c in list_checkpoints(run)] == [1, checkpoint.step, 5]
            assert len(list(run.iterdir())) == 3

        assert killed_at_every_call(tmp_path, prepare, check, power_cut) > 30

    def test_a_damaged_one_of_the_same_name_gives_way(self, tmp_path: Path, power_cut: bool) -> None:
        def prepare(run: Path) -> Callable[[], object]:
            save(run, 1)
            (save(run, 2).folder / ADAPTER).write_bytes(b"rot")
            return lambda: save(run, 2)

        def check(run: Path) -> None:
            checkpoint, _ = newest_good(run)
            assert is_intact(checkpoint)

        killed_at_every_call(tmp_path, prepare, check, power_cut)

    def test_the_final_adapter_is_the_old_or_the_new_one_or_can_be_made_again(
        self, tmp_path: Path, power_cut: bool
    ) -> None:
        def adapter(run: Path) -> bytes:
            return (run / "adapter" / ADAPTER).read_bytes()

        def prepare(run: Path) -> Callable[[], object]:
            publish_adapter(save(run, 1), run / "adapter")
            last = save(run, 2)
            return lambda: publish_adapter(last, run / "adapter")

        def check(run: Path) -> None:
            old, new = ((run / f"checkpoint-{step}" / ADAPTER).read_bytes() for step in (1, 2))
            assert not (run / "adapter").exists() or adapter(run) in {old, new}
            tidy(run)
            checkpoint, _ = newest_good(run)
            assert checkpoint is not None
            publish_adapter(checkpoint, run / "adapter")
            assert adapter(run) == new

        killed_at_every_call(tmp_path, prepare, check, power_cut)


@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power cut"])
class TestOtherFiles:
    def test_the_run_folder_is_there_whole_or_not_at_all(self, tmp_path: Path, power_cut: bool) -> None:
        def prepare(parent: Path) -> Callable[[], object]:
            return lambda: create_folder(parent / "run", RECIPE, {"basis": {}}, {"rows": 1})

        def check(parent: Path) -> None:
            run = parent / "run"
            if run.exists():
                assert load_recipe(str(run / "recipe.yaml")) == RECIPE
                assert read_environment(run) == {"basis": {}}
                assert json.loads((run / "data.json").read_text()) == {"rows": 1}
            else:
                create_folder(run, RECIPE, {"basis": {}}, {"rows": 1})
                assert [path.name for path in parent.iterdir()] == ["run"]

        killed_at_every_call(tmp_path, prepare, check, power_cut)

    def test_the_recipe_is_the_old_or_the_new_one(self, tmp_path: Path, power_cut: bool) -> None:
        longer = build_recipe(RECIPE.model_dump(), {"train.epochs": 5})

        def prepare(run: Path) -> Callable[[], object]:
            publish_bytes(dump_recipe(RECIPE).encode(), run / "recipe.yaml")
            return lambda: update_recipe(run, longer)

        def check(run: Path) -> None:
            assert load_recipe(str(run / "recipe.yaml")) in [RECIPE, longer]

        killed_at_every_call(tmp_path, prepare, check, power_cut)

    def test_events_lose_no_line_that_was_flushed_and_no_step_is_there_twice(
        self, tmp_path: Path, power_cut: bool
    ) -> None:
        def prepare(run: Path) -> Callable[[], object]:
            log = EventLog(run)
            for step in (1, 2, 3):
                log.write("step", step=step, time=float(step))
            log.flush()
            log.close()

            def go_on() -> None:
                log = EventLog(run, keep_steps=2)
                for step in (3, 4):
                    log.write("step", step=step, time=float(step))
                log.flush()
                log.close()

            return go_on

        def check(run: Path) -> None:
            steps = [event["step"] for event in read_events(run)]
            assert steps in ([1, 2, 3], [1, 2], [1, 2, 3, 4])
            log = EventLog(run, keep_steps=2)
            log.write("step", step=3, time=9.0)
            log.close()
            assert [event["step"] for event in read_events(run)] == [1, 2, 3]

        killed_at_every_call(tmp_path, prepare, check, power_cut)


class TestRefused:
    """The disk says no at one call: an error, everything as before, and nothing left behind."""

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
    def test_at_every_call_of_a_save(self, tmp_path: Path, code: int) -> None:
        save(tmp_path, 0)
        count = calls_of(lambda: save(tmp_path, 1))
        for n in range(1, count + 1):
            layer = Layer(fails=lambda call, number, n=n: code if number == n else None)
            with faults(layer), pytest.raises(OSError, match="Errno") as caught:
                save(tmp_path, 2)
            assert caught.value.errno == code
            checkpoint, faulty = newest_good(tmp_path)
            assert is_intact(checkpoint)
            assert not faulty
            if layer.calls[n - 1] != "close":  # a close that fails leaves a descriptor that nobody can close
                assert not list(tmp_path.glob(".*.partial"))
            save(tmp_path, 2)
            discard(tmp_path / "checkpoint-2")

    def test_two_processes_make_the_same_folder(self, tmp_path: Path) -> None:
        """The other one is faster, between our look and our rename: its run stays as it is."""
        other = build_recipe({"model": "other", "data": ["d.json"]})

        def overtaken(call: str, number: int) -> None:
            if call == "rename" and not (tmp_path / "run").exists():
                (tmp_path / "run").mkdir()
                (tmp_path / "run" / "recipe.yaml").write_text(dump_recipe(other))

        with faults(Layer(fails=overtaken)), pytest.raises(RunError, match="already holds a run"):
            create_folder(tmp_path / "run", RECIPE, {}, {})
        assert load_recipe(str(tmp_path / "run" / "recipe.yaml")) == other
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
