"""The inputs of a run that learns from preferences: groups in its plan, its basis and its hold-out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save_tiny
from weitune import cli
from weitune.data.layout import SEPARATE_GROUPS, SHARED, SHARED_GROUPS
from weitune.data.preference.values import Group, Item, examples_in
from weitune.data.prepare.holdout import ItemSet
from weitune.errors import DataError, RecipeError
from weitune.forecast.workload import Workload
from weitune.recipe.load import build_recipe
from weitune.recipe.schema import Recipe
from weitune.training.inputs import RunInputs, collect_inputs
from weitune.training.reporter import Reporter
from weitune.training.run import train
from weitune.training.run_plan import plan_run


class Lines(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("preferences") / "model")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(count: int, questions: int = 100) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Who are you, {i % questions}?",
            "chosen": f"the assistant {i}",
            "rejected": "the garden " * (1 + i % 5),
        }
        for i in range(count)
    ]


def recipe(model: Path, data: Path, **keys: Any) -> Recipe:
    return build_recipe(
        {"model": str(model), "data": [str(data)], "preference": "dpo", "train": {"batch_size": 4}}, keys
    )


def items(found: ItemSet[Item]) -> list[Item]:
    return [found[i] for i in range(len(found))]


def prompts(found: ItemSet[Item]) -> set[tuple[int, ...]]:
    return {answer.input_ids[: answer.spans[0].start] for answer in examples_in(items(found))}


def test_a_step_is_made_of_groups_and_an_epoch_has_each_once(model: Path, tmp_path: Path) -> None:
    inputs = collect_inputs(recipe(model, write(tmp_path / "pairs.jsonl", pairs(10))), Lines())
    assert (inputs.plan.steps_per_epoch, inputs.plan.steps) == (3, 9)
    seen = [int(i) for step in range(3) for i in inputs.plan.step(step)]
    assert sorted(seen) == list(range(10))
    assert all(isinstance(item, Group) and item.liked == (True, False) for item in items(inputs.examples))
    assert [len(inputs.examples_of(step)) for step in range(3)] == [8, 8, 4]
    assert inputs.unit == "pairs"


def test_groups_are_held_out_with_their_prompts(model: Path, tmp_path: Path) -> None:
    data, told = write(tmp_path / "pairs.jsonl", pairs(30, questions=10)), Lines()
    inputs = collect_inputs(recipe(model, data, validation=0.2), told)
    assert inputs.validation is not None
    assert len(inputs.examples) + len(inputs.validation) == 30
    assert not prompts(inputs.examples) & prompts(inputs.validation)
    assert f"held out for validation: {len(inputs.validation)} of 30 pairs, no prompt is in both parts" in told.lines


def test_validation_files_of_pairs_are_compared_with_the_trained_prompts(model: Path, tmp_path: Path) -> None:
    data, others = (
        write(tmp_path / "pairs.jsonl", pairs(10)),
        write(tmp_path / "others.jsonl", pairs(2) + pairs(20)[18:]),
    )
    told = Lines()
    inputs = collect_inputs(recipe(model, data, validation=[str(others)]), told)
    assert inputs.validation is not None
    assert len(inputs.validation) == 4
    assert "validation: 4 pairs; the prompts of 2 are in the training data too" in told.lines


def test_kto_makes_steps_of_judged_answers(model: Path, tmp_path: Path) -> None:
    told = Lines()
    inputs = collect_inputs(recipe(model, write(tmp_path / "pairs.jsonl", pairs(10)), preference="kto"), told)
    assert len(inputs.examples) == 20
    assert inputs.plan.steps_per_epoch == 5
    assert inputs.unit == "judged answers"
    assert "10 pairs became 20 judged answers, one liked and one disliked each" in told.lines


def test_the_basis_depends_on_both_answers_and_not_on_their_places(model: Path, tmp_path: Path) -> None:
    def basis(rows: Sequence[dict[str, Any]], **keys: Any) -> dict[str, Any]:
        return collect_inputs(recipe(model, write(tmp_path / "pairs.jsonl", rows), **keys), Lines()).basis

    rows = pairs(6)
    before = basis(rows)
    assert basis(rows) == before
    assert basis(rows, preference="simpo") == before  # the method is in the recipe
    other = [*rows[:5], {**rows[5], "rejected": "another"}]
    turned = [*rows[:5], {**rows[5], "rejected": rows[5]["chosen"], "chosen": rows[5]["rejected"]}]
    assert basis(other)["data"] != before["data"]
    assert basis(turned)["data"]["contents"] != before["data"]["contents"]


# The plan


@pytest.fixture
def inputs(model: Path, tmp_path: Path) -> RunInputs:
    return collect_inputs(recipe(model, write(tmp_path / "pairs.jsonl", pairs(10))), Lines())


def test_a_pass_holds_at_least_the_largest_group(inputs: RunInputs) -> None:
    largest = max(len(SHARED_GROUPS.lay([item])) for item in items(inputs.examples))
    assert inputs.longest == largest
    smallest_passes = Workload.lay_out(inputs.examples, inputs.plan, SHARED_GROUPS, 1)
    assert smallest_passes.largest.tokens == largest
    assert [len(step) for step in smallest_passes.steps] == [4, 4, 2]


def test_the_workload_is_that_of_the_passes_of_training(inputs: RunInputs) -> None:
    shared = Workload.lay_out(inputs.examples, inputs.plan, SHARED_GROUPS, 10_000)
    apart = Workload.lay_out(inputs.examples, inputs.plan, SEPARATE_GROUPS, 10_000)
    assert shared.tokens == apart.tokens == sum(item.tokens for item in items(inputs.examples))
    assert shared.computed_tokens < apart.computed_tokens
    longest = max(len(answer.inputs) for answer in examples_in(items(inputs.examples)))
    assert (shared.largest.longest, shared.largest.rows) == (longest, 8)
    assert shared.largest.least == shared.largest.undivided == inputs.longest > longest
    divided = Workload.lay_out(inputs.examples, inputs.plan, SHARED_GROUPS, 10_000, processes=2)
    assert max(size.rows for step in divided.steps for size in step) < 8


def test_a_plan_counts_groups(model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(10))
    plan = plan_run(recipe(model, data), device="cpu")
    assert plan.inputs is not None
    assert plan.workload is not None
    assert plan.inputs.layout(plan.meta.capabilities) is SHARED_GROUPS
    assert plan.to_json()["steps"] == 9
    assert plan.to_json()["data"]["preferences"]["pairs"] == 10
    assert plan.largest.least == plan.inputs.longest
    small = plan_run(recipe(model, data, **{"train.micro_tokens": 1}), device="cpu")
    assert small.here.chosen.micro_tokens == 1
    learned = plan_run(build_recipe({"model": str(model), "data": [str(conversations(tmp_path))]}), device="cpu")
    assert learned.inputs is not None
    assert learned.inputs.layout(learned.meta.capabilities) is SHARED


def test_only_rows_that_the_run_sees_need_room(model: Path, tmp_path: Path) -> None:
    answer = "one two three four five six " * 12
    rows = [{"instruction": f"Number {n}", "input": "", "output": answer} for n in range(99)]
    data = write(tmp_path / "rows.jsonl", rows)
    small = {"lora.r": 1, "lora.target_modules": ["q_proj"], "train.batch_size": 1}

    def notes(**keys: object) -> str:
        return "\n".join(plan_run(build_recipe({"model": str(model), "data": [str(data)]}, keys), device="cpu").notes)

    assert "may be small for the data" in notes(**small)
    assert "may be small for the data" not in notes(**small, **{"train.max_steps": 1})


def test_the_plan_says_what_its_steps_are_made_of(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(10))
    arguments = ["plan", "--model", str(model), "--data", str(data), "--preference.method", "kto"]
    assert cli.main([*arguments, "--device", "cpu"]) == 0
    assert "steps: 6, 2 an epoch of 16 judged answers each" in capsys.readouterr().out


# What is refused


def conversations(folder: Path) -> Path:
    return write(folder / "plain.jsonl", [{"prompt": f"Who, {i}?", "completion": "I am."} for i in range(3)])


@pytest.mark.parametrize(
    ("preference", "fix"),
    [(None, "--preference.method dpo"), ("dpo", None)],
    ids=["pairs without a method", "a method with pairs"],
)
def test_pairs_need_a_method(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], preference: str | None, fix: str | None
) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(10))
    arguments = ["plan", "--model", str(model), "--data", str(data), "--device", "cpu"]
    arguments += ["--preference.method", preference] if preference else []
    assert cli.main(arguments) == (2 if fix else 0)
    if fix:
        assert fix in capsys.readouterr().err


def test_training_on_pairs_without_a_method_leaves_no_folder(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(10))
    arguments = ["train", "--model", str(model), "--data", str(data), "--output", str(tmp_path / "run")]
    assert cli.main([*arguments, "--device", "cpu"]) == 2
    assert "--preference.method dpo" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_rows_without_a_preference_are_refused(model: Path, tmp_path: Path, method: str) -> None:
    with pytest.raises(DataError, match=r"plain\.jsonl row 1"):
        collect_inputs(recipe(model, conversations(tmp_path), preference=method), Lines())


def test_judged_answers_need_kto(model: Path, tmp_path: Path) -> None:
    judged = write(tmp_path / "judged.jsonl", [{"prompt": "Who?", "completion": "I.", "label": True}])
    with pytest.raises(DataError, match=r"--preference\.method kto"):
        collect_inputs(recipe(model, judged), Lines())


def test_a_file_that_mixes_kinds_is_refused_with_the_first_other_row(model: Path, tmp_path: Path) -> None:
    rows = [*pairs(3), {"prompt": "Who?", "completion": "I.", "label": True}, *pairs(2)]
    for method in ("dpo", "kto"):
        with pytest.raises(DataError, match=r"mixed\.jsonl row 4 \(line 4\)"):
            collect_inputs(recipe(model, write(tmp_path / "mixed.jsonl", rows), preference=method), Lines())


@pytest.mark.parametrize(("system", "most"), [("", 832), ("one two three four five six " * 11, 2048)])
def test_plan_and_training_split_steps_alike(model: Path, tmp_path: Path, system: str, most: int) -> None:
    rows = [{"instruction": f"Number {n * 7919}", "output": f"{n * 104729} is it " * 12} for n in range(64)]
    data = write(tmp_path / "rows.jsonl", rows)
    keys = {"system": system, "train.batch_size": 16, "train.max_steps": 1, "output": str(tmp_path / "run")}
    recipe = build_recipe({"model": str(model), "data": [str(data)]}, keys)
    planned = plan_run(recipe, device="cpu")
    assert planned.largest.tokens > 832 > 2 * planned.largest.longest
    run = train(recipe, device="cpu").path
    recorded = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    assert planned.here.chosen.micro_tokens == recorded["micro_tokens"] == most


def test_a_template_argument_that_nothing_reads_is_refused_but_not_in_a_run_that_has_it(
    model: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(10))
    asked = recipe(model, data, tokens={"template_args": {"enable_thinking": False}})
    with pytest.raises(RecipeError, match="reads no argument 'enable_thinking'"):
        collect_inputs(asked, Lines())
    assert len(collect_inputs(asked, Lines(), resumed=True).examples) == 10
