"""A run's folder gives its recipe, adapters and events, and says clearly what it lacks."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import save_tiny_run
from weitune import Run
from weitune.errors import RunError


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs") / "tiny", checkpoints=(5, 10), system="你是皇帝身边的女人。")


@pytest.fixture
def copied_run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_a_run_knows_its_recipe_and_adapters(tiny_run: Path) -> None:
    run = Run(str(tiny_run))
    assert run.path == tiny_run
    assert run.recipe.system == "你是皇帝身边的女人。"
    assert run.checkpoints() == [5, 10]
    assert run.adapter_folder() == tiny_run / "adapter"
    assert run.adapter_folder(5) == tiny_run / "checkpoint-5"
    assert run.adapter_folder("base") is None


def test_checkpoints_are_in_numerical_order_and_complete(copied_run: Path) -> None:
    shutil.copytree(copied_run / "checkpoint-5", copied_run / "checkpoint-100")
    shutil.copytree(copied_run / "checkpoint-5", copied_run / "checkpoint-200")
    (copied_run / "checkpoint-200" / "adapter_model.safetensors").unlink()
    shutil.copytree(copied_run / "checkpoint-5", copied_run / ".checkpoint-300.partial")
    assert Run(copied_run).checkpoints() == [5, 10, 100]


def test_the_newest_checkpoint_is_the_last_while_there_is_no_final_adapter(copied_run: Path) -> None:
    shutil.rmtree(copied_run / "adapter")
    assert Run(copied_run).adapter_folder("last") == copied_run / "checkpoint-10"


def test_a_run_without_any_adapter_says_how_to_go_on(copied_run: Path) -> None:
    for folder in ("adapter", "checkpoint-5", "checkpoint-10"):
        shutil.rmtree(copied_run / folder)
    with pytest.raises(RunError, match="has no adapter yet") as error:
        Run(copied_run).adapter_folder()
    assert f"weitune train --resume {copied_run}" in error.value.fix
    with pytest.raises(RunError, match="no checkpoint 5") as error:
        Run(copied_run).adapter_folder(5)
    assert "It has none" in error.value.fix


def test_an_unknown_checkpoint_names_those_that_exist(tiny_run: Path) -> None:
    with pytest.raises(RunError, match="no checkpoint 7") as error:
        Run(tiny_run).adapter_folder(7)
    assert "5, 10" in error.value.fix


def test_the_best_checkpoint_is_the_one_with_the_lowest_metric(copied_run: Path) -> None:
    with pytest.raises(RunError, match="none is known as the best") as error:
        Run(copied_run).adapter_folder("best")
    assert "validation" in error.value.fix
    for step, metric in ((5, 1.25), (10, 1.5)):
        (copied_run / f"checkpoint-{step}" / "state.json").write_text(json.dumps({"step": step, "metric": metric}))
    assert Run(copied_run).adapter_folder("best") == copied_run / "checkpoint-5"
    (copied_run / "checkpoint-5" / "state.json").write_text('{"metric": NaN}')
    assert Run(copied_run).adapter_folder("best") == copied_run / "checkpoint-10"


def test_a_best_checkpoint_that_is_damaged_is_named(copied_run: Path) -> None:
    for step in (5, 10):
        folder = copied_run / f"checkpoint-{step}"
        (folder / "state.json").write_text(json.dumps({"metric": step}))
        (folder / "manifest.json").write_text('{"files": {"state.json": {"bytes": 3, "sha256": ""}}}')
    content = (copied_run / "checkpoint-10" / "state.json").read_bytes()
    whole = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (copied_run / "checkpoint-10" / "manifest.json").write_text(json.dumps({"files": {"state.json": whole}}))
    said: list[str] = []
    run = Run(copied_run, say=said.append)
    assert {run.adapter_folder("best") for _ in range(3)} == {copied_run / "checkpoint-10"}
    damage = "checkpoint-5 is damaged: state.json has 13 bytes instead of 3"
    assert said == [f"checkpoint-10 is used, the best checkpoint that is not damaged: {damage}"]
    (copied_run / "checkpoint-10" / "state.json").write_text('{"metric": 1}')
    with pytest.raises(RunError, match="with a validation loss is damaged") as error:
        Run(copied_run).adapter_folder("best")
    assert damage in error.value.message
    assert "checkpoint-10 is damaged" in error.value.message


def test_what_is_not_a_run_is_refused(copied_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, message in ((tmp_path / "none", "there is no folder"), (tmp_path / "file", "is a file"),
                          (tmp_path, "it has no recipe.yaml")):  # fmt: skip
        with pytest.raises(RunError, match=message):
            Run(path)
    (copied_run / "environment.json").write_text("{}")
    with pytest.raises(RunError, match="is a checkpoint of the run") as error:
        Run(copied_run / "checkpoint-5")
    assert "--checkpoint 5" in error.value.fix


def test_events_survive_a_torn_line(copied_run: Path) -> None:
    assert list(Run(copied_run).events()) == []
    lines = [json.dumps({"event": "step", "step": step}) for step in (1, 2, 3)]
    torn = '{"event": "step", "st'
    (copied_run / "events.jsonl").write_text("\n".join([lines[0], torn, *lines[1:], torn]), encoding="utf-8")
    assert [event["step"] for event in Run(copied_run).events()] == [1, 2, 3]


def test_reading_a_folder_imports_no_torch(tiny_run: Path) -> None:
    code = (
        "import sys; from weitune import Run; run = Run(sys.argv[1]); run.recipe; run.checkpoints();"
        "list(run.events()); assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny_run)], check=True)
