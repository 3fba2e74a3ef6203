"""A run goes on only as the run it was: whatever else decides the numbers is compared, and named when it differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.runs import Inputs, digest
from tests.faults.test_resume import stopped
from tests.tiny import tiny_model
from weitune.errors import ModelError, RunError
from weitune.training.run import resume, train


@pytest.fixture
def own_inputs(inputs: Inputs, tmp_path: Path) -> Inputs:
    """Model and data of this test's own, to be changed."""
    model, data = tmp_path / "model", tmp_path / "data.json"
    shutil.copytree(inputs.model, model)
    shutil.copy(inputs.data, data)
    return Inputs(tmp_path, model, data)


def refused(run: Path, **overrides: object) -> str:
    """Return why the run does not go on; nothing in its folder has changed."""
    before = digest(run)
    with pytest.raises(RunError) as caught:
        resume(run, overrides={key.replace("__", "."): value for key, value in overrides.items()}, device="cpu")
    assert digest(run) == before
    return str(caught.value)


def edit_rows(edit: Callable[[list[dict[str, str]]], object]) -> Callable[[Inputs], None]:
    def change(inputs: Inputs) -> None:
        rows = json.loads(inputs.data.read_text(encoding="utf-8"))
        edit(rows)
        inputs.data.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")

    return change


def change_one_weight(inputs: Inputs) -> None:
    model = tiny_model("qwen2")
    model.model.norm.weight.data[3] += 1e-3
    model.save_pretrained(inputs.model)


def change_the_chat_template(inputs: Inputs) -> None:
    path = inputs.model / "chat_template.jinja"
    path.write_text(path.read_text(encoding="utf-8").replace("You are Tiny.", "You are tiny."), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (edit_rows(lambda rows: rows[3].update(output="Something else.")), ["data.contents", "data.tokens: "]),
        (edit_rows(lambda rows: rows.pop()), ["data.examples: 20 before, 19 now", "data.learned tokens: "]),
        (edit_rows(lambda rows: rows.append(dict(rows[0]))), ["data.examples: 20 before, 21 now"]),
        (edit_rows(lambda rows: rows.reverse()), ["data.contents"]),
        (change_one_weight, ["model: "]),
        (change_the_chat_template, ["framing.template: ", "tokenizer: "]),
    ],
    ids=["a row edited", "a row lost", "a row more", "another order", "one weight", "chat template"],
)
def test_what_lies_outside_the_recipe(
    own_inputs: Inputs, tmp_path: Path, change: Callable[[Inputs], None], named: list[str]
) -> None:
    run = stopped(own_inputs, tmp_path / "run", 2)
    change(own_inputs)
    message = refused(run)
    assert "cannot be resumed, because it would not be the same run" in message
    assert all(name in message for name in named), message
    assert "What may change: train.epochs, train.max_steps, train.micro_tokens, " in message


def test_what_the_recipe_says(inputs: Inputs, tmp_path: Path) -> None:
    run = stopped(inputs, tmp_path / "run", 2)
    message = refused(run, train__learning_rate=2e-2, lora__r=4, system="You are huge.", train__epochs=9)
    assert "train.learning_rate: 0.01 before, 0.02 now" in message
    assert "lora.r: 8 before, 4 now" in message
    assert "system: You are Tiny. before, You are huge. now" in message
    assert "train.epochs: " not in message


def test_a_recipe_file_that_was_edited_in_the_run(inputs: Inputs, tmp_path: Path) -> None:
    run = stopped(inputs, tmp_path / "run", 2)
    path = run / "recipe.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("seed: 42", "seed: 43"), encoding="utf-8")
    assert "train.seed: 42 before, 43 now" in refused(run)


def test_another_size_of_adapter_behind_the_recipe_s_back(inputs: Inputs, tmp_path: Path) -> None:
    """Tensors that do not fit are named, all of them at once."""
    from weitune.run.checkpoint import newest_good
    from weitune.training.resume.snapshot import restore

    checkpoint, _ = newest_good(stopped(inputs, tmp_path / "run", 2))
    assert checkpoint is not None
    import torch

    from weitune.model.lora.adapter import attach_adapter
    from weitune.model.lora.trainable_state import LoraAdapter
    from weitune.recipe.schema import Lora

    adapted = attach_adapter(tiny_model("qwen2"), Lora(r=4), seed=0, base="tiny")
    before = {name: parameter.clone() for name, parameter in adapted.named_parameters()}
    optimizer = torch.optim.AdamW(p for p in adapted.parameters() if p.requires_grad)
    with pytest.raises(RunError, match="28 tensors differ") as caught:
        restore(checkpoint, LoraAdapter(adapted), optimizer)
    assert "shape (8, 64), but the model has (4, 64)" in str(caught.value)
    assert all(torch.equal(before[name], parameter) for name, parameter in adapted.named_parameters())


def test_an_environment_file_that_is_gone(inputs: Inputs, tmp_path: Path) -> None:
    run = stopped(inputs, tmp_path / "run", 2)
    (run / "environment.json").unlink()
    assert "environment.json cannot be read" in refused(run)


def test_an_adapter_that_changed_its_base_is_no_start(inputs: Inputs, tmp_path: Path) -> None:
    """PEFT's PiSSA, unless converted when saved, fits a base without the part that it began with."""
    adapter = shutil.copytree(inputs.undisturbed / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(ModelError, match="init_lora_weights"):
        train(inputs.recipe(tmp_path / "run", **{"lora.init_from": str(adapter)}), device="cpu")
    assert not (tmp_path / "run").exists()
