"""A run on a base that was published quantized equals one on its dense copy, and is resumed to the same bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import published as kinds
from tests.families import save_family
from tests.faults.runs import digest
from tests.published import quantize
from tests.training.test_run import DIALOGUES, StopAfter
from weitune import train
from weitune.errors import Interrupted
from weitune.model.load.weights import load_model
from weitune.recipe.schema import Recipe, Train
from weitune.training.run import resume


def recipe(folder: Path) -> Recipe:
    """Write rows to ``folder`` and return the recipe of a run there, on the model in it."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DIALOGUES))
    options = Train(max_steps=4, checkpoint_every=2, batch_size=4, precision="fp32", learning_rate=1e-3)
    places = {"model": str(folder / "model"), "data": [str(folder / "rows.jsonl")], "output": str(folder / "run")}
    return Recipe.model_validate({**places, "train": options})


@pytest.mark.parametrize(("family", "settings"), [("qwen3", kinds.FP8), ("gpt_oss", kinds.MXFP4)])
def test_training_is_that_on_the_dense_copy(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    base = tmp_path / "a" / "model"
    save_family(base, family)
    quantize(base, settings)
    dense = load_model(str(base), precision="fp32", device="cpu")
    dense.model.save_pretrained(tmp_path / "b" / "model")
    dense.tokenizer.save_pretrained(tmp_path / "b" / "model")
    shutil.copytree(base, tmp_path / "c" / "model")
    for name in ("a", "b"):
        train(recipe(tmp_path / name), device="cpu")
    with pytest.raises(Interrupted):
        train(recipe(tmp_path / "c"), device="cpu", reporter=StopAfter(3))
    resume(tmp_path / "c" / "run", device="cpu")
    weights = "adapter_model.safetensors"
    trained = {digest(tmp_path / name / "run" / "adapter")[weights] for name in ("a", "b", "c")}
    assert len(trained) == 1
