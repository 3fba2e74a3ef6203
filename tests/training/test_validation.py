"""Validation changes nothing of a run but what is known about it, and when it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import Inputs, Listener, digest, make_inputs
from tests.tiny import save_tiny
from weitune.errors import DataError, InputError, Interrupted, RunError
from weitune.generate.run import Run
from weitune.model.storage import allocator
from weitune.run.events import read_events
from weitune.training import validation
from weitune.training.run import resume, train
from weitune.training.signals import StopRequest

KEYS: dict[str, Any] = {"validation": 0.3, "train.evaluate_every": 3, "train.sample_tokens": 6}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inputs]:
    folder = tmp_path_factory.mktemp("validation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield make_inputs(folder / "inputs")


@pytest.fixture(scope="module")
def whole(inputs: Inputs) -> Path:
    """A run with an evaluation every 3 of its 10 steps."""
    return train(inputs.recipe(inputs.folder / "whole", **KEYS), device="cpu").path


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(run) if event["event"] == "validation"]


def found(run: Path) -> list[tuple[int, float, list[Any], bool]]:
    return [(event["step"], event["loss"], event["samples"], event["best"]) for event in evaluations(run)]


def test_events_tell_loss_perplexity_and_samples(whole: Path) -> None:
    told = evaluations(whole)
    assert [event["step"] for event in told] == [0, 3, 6, 9, 10]
    for event in told:
        assert event["perplexity"] == pytest.approx(2.718281828 ** event["loss"], rel=1e-6)
        assert event["learned_tokens"] > 0
        assert len(event["samples"]) == 3
        assert all(sample["prompt"] and sample["reference"] for sample in event["samples"])
    losses = [event["loss"] for event in told]
    assert [event["best"] for event in told] == [loss == min(losses[: k + 1]) for k, loss in enumerate(losses)]
    assert json.loads((whole / "data.json").read_text())["validation"]["examples"] == 6


def test_training_goes_on_to_the_same_bits(inputs: Inputs, whole: Path, tmp_path: Path) -> None:
    """Whether a model is evaluated after every step or hardly ever, it becomes the same."""
    often = train(inputs.recipe(tmp_path / "often", **KEYS | {"train.evaluate_every": 1}), device="cpu").path
    assert digest(often / "adapter") == digest(whole / "adapter")
    assert [e[1] for e in found(often) if e[0] in {0, 3, 6, 9, 10}] == [e[1] for e in found(whole)]


def test_freed_memory_goes_back_before_and_after_an_evaluation(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    measure, answer = validation.measure_loss, validation.answer_samples
    for module in (validation, allocator):
        monkeypatch.setattr(module, "release_freed_memory", lambda: done.append("give back"))
    monkeypatch.setattr(validation, "measure_loss", lambda *a: (done.append("loss"), measure(*a))[1])
    monkeypatch.setattr(validation, "answer_samples", lambda *a: (done.append("samples"), answer(*a))[1])
    train(inputs.recipe(tmp_path / "run", **KEYS | {"train.evaluate_every": 10}), device="cpu")
    assert done == ["give back", "loss", "samples", "give back"] * 2


def test_each_evaluation_leaves_a_checkpoint_that_knows_it(inputs: Inputs, tmp_path: Path) -> None:
    keys = KEYS | {"train.keep_checkpoints": 20}
    run = train(inputs.recipe(tmp_path / "run", **keys), device="cpu").path
    assert Run(run).checkpoints() == [3, 4, 6, 8, 9, 10]
    known = {step: loss for step, loss, *_ in found(run)}
    for step in Run(run).checkpoints():
        state = json.loads((run / f"checkpoint-{step}" / "state.json").read_text())
        assert state["metric"] == known.get(step)
    best = min((step for step in known if step), key=known.__getitem__)
    assert Run(run).adapter_folder("best") == run / f"checkpoint-{best}"


@pytest.mark.parametrize("step", [2, 3, 5])
def test_interrupted_and_resumed_is_the_same_run(inputs: Inputs, whole: Path, tmp_path: Path, step: int) -> None:
    """Step 3: the stop comes before the evaluation that is due then, which is made up for."""
    stop = StopRequest()
    listener = Listener(after={step: stop.stop})
    with pytest.raises(Interrupted):
        train(inputs.recipe(tmp_path / "run", **KEYS), device="cpu", reporter=listener, stop=stop)
    run = resume(tmp_path / "run", device="cpu").path
    assert digest(run / "adapter") == digest(whole / "adapter")
    assert found(run) == found(whole)
    assert Run(run).adapter_folder("best").name == Run(whole).adapter_folder("best").name  # type: ignore[union-attr]


def test_a_stop_before_the_last_evaluation_leaves_it_to_the_next_start(
    inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    stop = StopRequest()
    run = train(
        inputs.recipe(tmp_path / "run", **KEYS), device="cpu", reporter=Listener(after={10: stop.stop}), stop=stop
    ).path
    assert found(run) == found(whole)[:-1]
    resume(run, device="cpu")
    assert found(run) == found(whole)
    assert digest(run / "adapter") == digest(whole / "adapter")


def worsening(inputs: Inputs, output: Path, **more: Any) -> Any:
    """A recipe that learns its rows by heart and so gets worse on others."""
    keys = {"train.learning_rate": 0.05, "train.epochs": 30, "train.evaluate_every": 4, "train.sample_prompts": []}
    return inputs.recipe(output, **KEYS | keys | more)


def test_early_stopping_publishes_the_best(inputs: Inputs, tmp_path: Path) -> None:
    listener = Listener()
    run = train(worsening(inputs, tmp_path / "run", **{"train.patience": 2}), device="cpu", reporter=listener).path
    told = evaluations(run)
    losses = {event["step"]: event["loss"] for event in told}
    best = min(losses, key=losses.__getitem__)
    assert len(losses) < 20  # of 38
    assert [step for step in losses if step > best] == [best + 4, best + 8]
    assert best > 0
    end = [event for event in read_events(run) if event["event"] == "end"]
    assert [(event["step"], event["adapter_step"]) for event in end] == [(best + 8, best)]
    adapter = "adapter_model.safetensors"
    assert (run / "adapter" / adapter).read_bytes() == (run / f"checkpoint-{best}" / adapter).read_bytes()
    assert "the validation loss no longer falls" in listener.text

    again = Listener()
    resume(run, device="cpu", reporter=again)
    assert f"complete after {best + 8} steps; to continue, raise train.patience" in again.text
    assert (run / "adapter" / adapter).read_bytes() == (run / f"checkpoint-{best}" / adapter).read_bytes()

    assert list(read_events(run))[-1]["adapter_step"] == best
    resume(run, device="cpu", overrides={"train.patience": 3})
    assert max(event["step"] for event in evaluations(run)) >= best + 12


def test_prompts_of_ones_own(inputs: Inputs, tmp_path: Path) -> None:
    keys = KEYS | {"train.sample_prompts": ["你是谁？", "x" * 5000], "train.max_steps": 1}
    run = train(inputs.recipe(tmp_path / "run", **keys), device="cpu").path
    for event in evaluations(run):
        assert [(sample["prompt"], sample["reference"]) for sample in event["samples"]] == [("你是谁？", None)]


def test_prompts_of_ones_own_are_answered_without_rows_to_judge_by(inputs: Inputs, tmp_path: Path) -> None:
    keys = {**KEYS, "validation": None, "train.sample_prompts": ["你是谁？"], "train.max_steps": 1}
    run = train(inputs.recipe(tmp_path / "run", **keys), device="cpu").path
    told = [event for event in read_events(run) if event["event"] == "samples"]
    assert [(event["step"], event["samples"][0]["prompt"]) for event in told] == [(0, "你是谁？"), (1, "你是谁？")]
    plain = train(inputs.recipe(tmp_path / "plain", **{**keys, "train.sample_prompts": None}), device="cpu").path
    assert not [event for event in read_events(plain) if event["event"] in {"samples", "validation"}]


def test_samples_are_kept_to_a_schema(inputs: Inputs, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"enum": ["high", "low"]}))
    keys = KEYS | {"train.sample_schema": str(schema), "train.sample_tokens": 20, "train.max_steps": 1}
    run = train(inputs.recipe(tmp_path / "run", **keys), device="cpu").path
    answers = [sample["answer"] for event in evaluations(run) for sample in event["samples"]]
    assert len(answers) == 6
    assert set(answers) <= {'"high"', '"low"'}


@pytest.mark.parametrize("text", [None, "[]", '{"not": {}}'])
def test_a_schema_that_cannot_be_kept_is_refused_before_there_is_a_run(
    inputs: Inputs, tmp_path: Path, text: str | None
) -> None:
    pytest.importorskip("llguidance")
    schema, run = tmp_path / "schema.json", tmp_path / "run"
    if text is not None:
        schema.write_text(text)
    with pytest.raises(InputError):
        train(inputs.recipe(run, **KEYS, **{"train.sample_schema": str(schema)}), device="cpu")
    assert not run.exists()


def test_a_schema_is_refused_where_the_prompt_opens_the_reasoning(inputs: Inputs, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    (schema := tmp_path / "schema.json").write_text('{"enum": ["high", "low"]}')
    template = save_tiny(tmp_path / "model", "qwen3") / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    opened = text.replace("{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}")
    assert opened != text
    template.write_text(opened, encoding="utf-8")
    keys = KEYS | {"model": str(tmp_path / "model"), "train.sample_schema": str(schema)}
    with pytest.raises(InputError, match="opens the model's reasoning"):
        train(inputs.recipe(tmp_path / "run", **keys), device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_file_of_its_own(inputs: Inputs, tmp_path: Path) -> None:
    held = tmp_path / "held.json"
    rows = [{"instruction": "Who are you?", "input": "", "output": "I am Tiny."}]
    rows.append(json.loads(inputs.data.read_text())[0])
    held.write_text(json.dumps(rows))
    listener = Listener()
    keys = KEYS | {"validation": [str(held)], "train.max_steps": 3}
    run = train(inputs.recipe(tmp_path / "run", **keys), device="cpu", reporter=listener).path
    assert "validation: 2 examples; the prompts of 1 are in the training data too" in listener.text
    assert [step for step, *_ in found(run)] == [0, 3]

    rows[0]["output"] = "I am somebody else."
    held.write_text(json.dumps(rows))
    with pytest.raises(RunError, match=r"validation\.contents"):
        resume(run, overrides={"train.max_steps": 4}, device="cpu")


def test_validation_data_that_are_not_in_order_leave_no_folder(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "held.json").write_text('[{"instruction": "hi"}]')
    with pytest.raises(DataError):
        train(inputs.recipe(tmp_path / "run", validation=[str(tmp_path / "held.json")]), device="cpu")
    assert not (tmp_path / "run").exists()
