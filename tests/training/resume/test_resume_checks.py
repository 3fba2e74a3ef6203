"""Every key of the recipe either may change when a run goes on, says only where something is, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from weitune.errors import RunError
from weitune.recipe.load import build_recipe, fields
from weitune.training.resume.resume_checks import MAY_CHANGE, check_basis, check_length, check_recipe

RUN = Path("runs/x")
BEFORE = build_recipe({"model": "m", "data": ["d.json"], "validation": ["v.json"]})
OTHER: dict[str, Any] = {
    "train.epochs": 4, "train.max_steps": 9, "train.micro_tokens": 512, "train.log_every": 3,
    "train.checkpoint_every": 7, "train.keep_checkpoints": 1, "train.evaluate_every": 5, "train.patience": 2,
    "log.trackers": ["wandb"], "train.sample_prompts": ["Hi"], "train.sample_tokens": 9,
    "train.sample_schema": "s.json", "train.recompute": "block",
    "train.save_on_each_node": True, "train.shard": True,
}  # fmt: skip
PLACES: dict[str, Any] = {
    "model": "n", "hub": "modelscope", "revision": "v2", "data": ["e.json"], "weights": {"d.json": 1.0}, "output": "o",
    "validation": ["w.json"], "lora.init_from": "runs/before",
}  # fmt: skip
REFUSED: dict[str, Any] = {
    "validation": 0.1, "format": "alpaca", "columns": {"user": "q"}, "encoding": "cp949", "system": "s",
    "tokens.max_length": 99, "tokens.truncation": "cut", "tokens.template": "tutorial",
    "tokens.template_args": {"enable_thinking": False}, "tokens.supervise": "last",
    "lora.r": 4, "lora.alpha": 16, "lora.dropout": 0.0, "lora.target_modules": ["q_proj"],
    "lora": "none", "lora.rslora": True, "lora.dora": True, "lora.init": "pissa", "lora.plus_ratio": 16,
    "lora.freeze_a": True, "lora.layers": "0-3", "lora.rank_pattern": {"q_proj": 2},
    "lora.alpha_pattern": {"q_proj": 2},
    "lora.modules_to_save": ["lm_head"], "lora.train_tokens": ["<|a|>"],
    "train.batch_size": 8, "train.learning_rate": 2e-4, "train.schedule": "cosine", "train.warmup_ratio": 0.1,
    "train.weight_decay": 0.1, "train.max_grad_norm": 2.0, "train.seed": 1, "train.precision": "fp32",
    "train.storage": "int8",
}  # fmt: skip


def test_every_key_is_spoken_for_and_new_ones_are_refused_until_someone_decides() -> None:
    assert set(OTHER) == set(MAY_CHANGE)
    assert set(OTHER) | set(PLACES) <= {key for key, _ in fields()}


@pytest.mark.parametrize(("key", "value"), OTHER.items())
def test_may_change_and_is_said(key: str, value: Any) -> None:
    (line,) = check_recipe(RUN, BEFORE, build_recipe(BEFORE.model_dump(), {key: value}))
    assert line.startswith(f"{key}: {value} instead of ")


@pytest.mark.parametrize(("key", "value"), PLACES.items())
def test_a_place_is_free(key: str, value: Any) -> None:
    assert check_recipe(RUN, BEFORE, build_recipe(BEFORE.model_dump(), {key: value})) == []


@pytest.mark.parametrize(("key", "value"), REFUSED.items())
def test_the_rest_is_refused(key: str, value: Any) -> None:
    with pytest.raises(RunError, match=rf"\n  {key}") as caught:
        check_recipe(RUN, BEFORE, build_recipe(BEFORE.model_dump(), {key: value}))
    assert "before" in str(caught.value)
    assert "Restore these" in caught.value.fix


def test_all_differences_at_once_and_no_others() -> None:
    now = build_recipe(BEFORE.model_dump(), {"lora.r": 4, "train.seed": 1, "train.epochs": 9})
    with pytest.raises(RunError) as caught:
        check_recipe(RUN, BEFORE, now)
    assert [line.split(":")[0].strip() for line in caught.value.message.splitlines()[1:]] == ["lora.r", "train.seed"]


def test_the_same_is_the_same() -> None:
    assert check_recipe(RUN, BEFORE, build_recipe(BEFORE.model_dump())) == []
    check_basis(RUN, {"data": {"examples": 3}}, {"data": {"examples": 3}})
    check_length(RUN, 30, 30)


def test_a_basis_with_more_or_less_in_it() -> None:
    for before, now in (({"a": 1}, {}), ({}, {"a": 1}), ({"a": {"b": 1}}, {"a": {"b": "x" * 64}})):
        with pytest.raises(RunError, match=r"\n  a"):
            check_basis(RUN, before, now)


def test_files_whose_encoding_was_named_may_move() -> None:
    before = build_recipe({**BEFORE.model_dump(), "encoding": {"d.json": "cp949"}})
    assert check_recipe(RUN, before, build_recipe(before.model_dump(), {"encoding": {"e.json": "cp949"}})) == []
    with pytest.raises(RunError, match=r"\n  encoding: by file before, cp949 now"):
        check_recipe(RUN, before, build_recipe(before.model_dump(), {"encoding": "cp949"}))
