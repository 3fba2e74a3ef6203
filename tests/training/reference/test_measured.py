"""Whole runs that learn from preferences: the reference, resuming to the same bits, validation, and what is told."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.runs import Inputs, Listener, digest
from tests.tiny import save_tiny
from weitune.data.preference.reference import HELD, TRAINED, AnswerSums, Reference
from weitune.errors import Interrupted, NonFiniteError, RunError
from weitune.model.supervised import SupervisedModel
from weitune.run import preference_figures
from weitune.run.events import read_events
from weitune.training.preference import answer_meter
from weitune.training.reference import measured
from weitune.training.run import resume, train
from weitune.training.signals import StopRequest

FILE = "reference.safetensors"
_ANSWERS = ("I am the assistant.", "我是皇帝身边的女人。", "今天天气很好。", "Once there was a fisherman.", "Paris.")
_QUESTIONS = ("你是谁？", "What can you do?", "今天天气怎么样？", "Tell me a story about the sea.")


def rows(kind: str) -> list[dict[str, Any]]:
    draw = random.Random(3)
    made: list[dict[str, Any]] = []
    for n in range(14):
        prompt = f"{draw.choice(_QUESTIONS)} {n}"
        chosen, rejected = draw.sample(_ANSWERS, 2)
        if kind == "judged":
            made.append({"prompt": prompt, "completion": chosen, "label": bool(n % 2)})
        else:
            made.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return made


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "inputs"
    folder.mkdir()
    data = folder / "pairs.jsonl"
    data.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows("pairs")))
    return Inputs(folder, save_tiny(folder / "model"), data)


def keys(method: str = "dpo", **more: Any) -> dict[str, Any]:
    return {"preference.method": method, "train.learning_rate": 3e-3, "train.sample_prompts": [], **more}


def steps(run: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(run) if event["event"] == "step"]


def figures(run: Path) -> list[tuple[Any, ...]]:
    names = ("step", "loss", "grad_norm", "rewards/chosen", "rewards/margins", "logps/chosen", "kl")
    return [tuple(event.get(name) for name in names) for event in steps(run)]


def stopped_after(inputs: Inputs, folder: Path, step: int, **more: Any) -> None:
    stop = StopRequest()
    listener = Listener(after={step: lambda: stop.stop("a test")})
    with pytest.raises(Interrupted):
        train(inputs.recipe(folder, **more), device="cpu", stop=stop, reporter=listener)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_stopped_run_resumes_to_the_same_bits_from_its_folder_alone(
    method: str, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = keys(method)
    whole = train(inputs.recipe(tmp_path / "whole", **more), device="cpu").path
    stopped_after(inputs, tmp_path / "stopped", 3, **more)
    monkeypatch.setattr(measured, "measure_reference", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(measured, "read_cached", lambda *_: pytest.fail("the cache was read"))
    resume(tmp_path / "stopped", device="cpu")
    assert digest(tmp_path / "stopped" / "adapter") == digest(whole / "adapter")
    assert figures(tmp_path / "stopped") == figures(whole)
    assert (tmp_path / "stopped" / FILE).read_bytes() == (whole / FILE).read_bytes()


def test_what_a_step_tells(inputs: Inputs, tmp_path: Path) -> None:
    run = train(inputs.recipe(tmp_path / "run", **keys()), device="cpu").path
    first, *_, last = steps(run)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert last["rewards/margins"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"])
    assert last["rewards/margins"] > 0
    assert 0 <= last["rewards/accuracies"] <= 1
    assert last["logps/chosen"] < 0
    assert "figures" not in last
    assert "kl" not in last
    assert "Preferences" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "start",
    [
        {"lora.init": "pissa"},
        {"lora.init": "olora"},
        {"lora.init": "eva"},
        {"lora.init": "loftq", "train.storage": "nf4"},
        {"lora.dora": True, "train.recompute": "block"},
        {"lora": "none"},
    ],
    ids=str,
)
def test_the_first_loss_is_ln_2_however_the_model_starts(start: dict[str, Any], inputs: Inputs, tmp_path: Path) -> None:
    more = keys(**start, **{"train.max_steps": 1})
    run = train(inputs.recipe(tmp_path / "run", **more), device="cpu").path
    assert steps(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_the_first_loss_is_ln_2_from_an_earlier_run(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    earlier = train(inputs.recipe(tmp_path / "earlier", **keys()), device="cpu").path
    more = keys(**{"lora.init_from": "~/earlier", "train.max_steps": 1})
    run = train(inputs.recipe(tmp_path / "run", **more), device="cpu").path
    assert steps(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (run / FILE).read_bytes() != (earlier / FILE).read_bytes()


def test_other_strengths_and_rates_use_the_same_reference(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(inputs.recipe(tmp_path / "first", **keys()), device="cpu").path
    monkeypatch.setattr(measured, "measure_reference", lambda *_: pytest.fail("measured again"))
    more = keys("ipo", **{"preference.beta": 0.4, "train.learning_rate": 1e-4, "train.epochs": 1, "lora.r": 4})
    second = train(inputs.recipe(tmp_path / "second", **more), device="cpu").path
    assert (first / FILE).read_bytes() == (second / FILE).read_bytes()


def test_a_reference_measured_otherwise_or_damaged_is_measured_again(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache" / "weitune" / "references"
    counted: list[int] = []
    measure = measured.measure_reference
    monkeypatch.setattr(measured, "measure_reference", lambda *args: counted.append(1) or measure(*args))

    def measures(name: str) -> bool:
        before = len(counted)
        train(inputs.recipe(tmp_path / name, **keys(**{"train.max_steps": 1})), device="cpu")
        return len(counted) > before

    assert [measures("first"), measures("same")] == [True, False]
    (file,) = cache.iterdir()
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert [measures("damaged"), measures("mended")] == [True, False]
    assert file.read_bytes() == good
    monkeypatch.setattr(measured, "arithmetic", lambda device: "another machine")
    assert measures("elsewhere")
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_that_has_not_moved_has_gained_exactly_nothing(
    method: str, precision: str, inputs: Inputs, tmp_path: Path
) -> None:
    """In the first epoch's passes, cut small, and with held-out groups; the learning rate moves no weight."""
    still = {"train.learning_rate": 1e-30, "train.precision": precision, "train.micro_tokens": 40, "train.epochs": 1}
    run = train(inputs.recipe(tmp_path / "run", **keys(method, **still, validation=0.3)), device="cpu").path
    told = [event for event in read_events(run) if event["event"] in {"step", "validation"}]
    assert len(told) > 3
    for event in told:
        assert event["loss"] == pytest.approx(0.5 if method == "kto" else math.log(2), abs=1e-12)
        assert [event.get(f"rewards/{side}", 0) for side in ("chosen", "rejected")] == [0, 0]


@pytest.mark.parametrize(("micro_tokens", "most"), [(48, 48), (4096, 1024)])
def test_held_out_and_mismatched_answers_are_measured_in_passes_as_small_as_those_of_training(
    micro_tokens: int, most: int, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    measure = answer_meter.measure_answers
    monkeypatch.setattr(answer_meter, "measure_answers", lambda *args: sizes.append(args[3]) or measure(*args))
    more = {"train.micro_tokens": micro_tokens, "train.epochs": 1, "validation": 0.3}
    train(inputs.recipe(tmp_path / "run", **keys("kto", **more)), device="cpu")
    assert set(sizes) == {micro_tokens, most}  # those of steps, in the reference, and all others


def test_methods_without_a_reference_have_no_file(inputs: Inputs, tmp_path: Path) -> None:
    run = train(inputs.recipe(tmp_path / "run", **keys("simpo")), device="cpu").path
    assert not (run / FILE).exists()
    assert "logps/chosen_gain" not in steps(run)[-1]


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_lost_reference_is_not_replaced(damage: str, inputs: Inputs, tmp_path: Path) -> None:
    stopped_after(inputs, tmp_path / "run", 3, **keys())
    file = tmp_path / "run" / FILE
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    else:
        parts = Reference.from_bytes(file.read_bytes()).parts
        moved = {name: AnswerSums(part.sums + 1e-9, part.counts) for name, part in parts.items()}
        file.write_bytes(Reference(moved).to_bytes())
    before = digest(tmp_path / "run")
    with pytest.raises(RunError, match=r"reference"):
        resume(tmp_path / "run", device="cpu")
    assert digest(tmp_path / "run") == before


def test_other_data_are_told_apart_from_a_lost_reference(inputs: Inputs, tmp_path: Path) -> None:
    stopped_after(inputs, tmp_path / "run", 3, **keys())
    inputs.data.write_text("\n".join(json.dumps(row) for row in rows("pairs")[:-1]))
    with pytest.raises(RunError, match=r"data\.contents"):
        resume(tmp_path / "run", device="cpu")


def test_more_epochs_go_on_with_the_reference_but_not_for_kto(inputs: Inputs, tmp_path: Path) -> None:
    short, constant = {"train.epochs": 1}, {"train.schedule": "constant"}
    run = train(inputs.recipe(tmp_path / "dpo", **keys(**short, **constant)), device="cpu").path
    resume(run, overrides={"train.epochs": 2}, device="cpu")
    long = train(inputs.recipe(tmp_path / "long", **keys(**constant)), device="cpu").path
    assert digest(run / "adapter") == digest(long / "adapter")
    run = train(inputs.recipe(tmp_path / "kto", **keys("kto", **short)), device="cpu").path
    with pytest.raises(RunError, match="fewer steps"):
        resume(run, overrides={"train.epochs": 2}, device="cpu")


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_only_groups_of_the_steps_are_measured(method: str, inputs: Inputs, tmp_path: Path) -> None:
    more = {"train.schedule": "constant", "train.batch_size": 4, "validation": 0.2}

    def trained(name: str, max_steps: int) -> tuple[Path, Reference]:
        run = train(inputs.recipe(tmp_path / name, **keys(method, **more, **{"train.max_steps": max_steps}))).path
        return run, Reference.from_bytes((run / FILE).read_bytes())

    (short, some), (long, every) = trained("short", 2), trained("long", 6)
    assert every.numbers is None
    assert some.numbers is not None
    assert len(some.numbers) == len(some.parts[TRAINED]) == 8 < len(every.parts[TRAINED])
    for place, number in enumerate(some.numbers):
        assert some.parts[TRAINED][place] == every.parts[TRAINED][int(number)]
    assert len(some.parts[HELD]) == len(every.parts[HELD]) > 0
    assert figures(short) == figures(long)[:2]
    before = digest(short)
    with pytest.raises(RunError, match="fewer steps"):
        resume(short, overrides={"train.max_steps": 3}, device="cpu")
    assert digest(short) == before
    stopped_after(inputs, tmp_path / "stopped", 1, **keys(method, **more, **{"train.max_steps": 2}))
    resume(tmp_path / "stopped", device="cpu")
    assert digest(tmp_path / "stopped" / "adapter") == digest(short / "adapter")


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo"])
def test_held_out_pairs_are_judged_by_the_same_loss(method: str, inputs: Inputs, tmp_path: Path) -> None:
    held = {"validation": 0.3, "train.evaluate_every": 2}
    run = train(inputs.recipe(tmp_path / "run", **keys(method, **held)), device="cpu").path
    found = [event for event in read_events(run) if event["event"] == "validation"]
    assert [event["step"] for event in found] == sorted({event["step"] for event in found})
    if method == "dpo":
        assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    if method == "kto":
        assert found[0]["loss"] == pytest.approx(0.5, abs=1e-6)
        assert found[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert {"rewards/chosen", "rewards/accuracies", "logps/chosen"} <= found[-1].keys()
    assert found[-1]["perplexity"] > 1
    state = json.loads(next(run.glob("checkpoint-*/state.json")).read_text())
    assert state["evaluations"]


def test_judged_rows(inputs: Inputs, tmp_path: Path) -> None:
    inputs.data.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows("judged")))
    listener = Listener()
    run = train(inputs.recipe(tmp_path / "run", **keys("kto")), device="cpu", reporter=listener).path
    assert steps(run)[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert "the reference: log-probabilities of 14 answers" in listener.text


@pytest.mark.parametrize(("fall_nats", "told"), [(-1000.0, True), (1.0, False)])
def test_answers_that_become_less_likely_are_told(
    fall_nats: float, told: bool, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These become likelier; as if that were a fall, or as it is."""
    monkeypatch.setattr(preference_figures, "_FALL_NATS", fall_nats)
    listener = Listener()
    more = keys(**{"preference.sft_weight": 1.0})
    run = train(inputs.recipe(tmp_path / "run", **more), device="cpu", reporter=listener).path
    assert steps(run)[-1]["logps/chosen_gain"] > 0
    assert ("have become less likely" in listener.text) == told
    assert ("have become less likely" in (run / "report.html").read_text(encoding="utf-8")) == told


def test_without_held_out_pairs_questions_are_answered_all_the_same(inputs: Inputs, tmp_path: Path) -> None:
    more = keys(**{"train.sample_prompts": None, "train.sample_tokens": 4, "train.evaluate_every": 4})
    run = train(inputs.recipe(tmp_path / "run", **more), device="cpu").path
    found = [event for event in read_events(run) if event["event"] == "samples"]
    assert [event["step"] for event in found] == [0, 4, 8, 10]
    assert all(len(event["samples"]) == 3 and "loss" not in event for event in found)
    assert found[0]["samples"][0]["reference"] in _ANSWERS
    assert "Answers during training" in (run / "report.html").read_text(encoding="utf-8")
    stopped_after(inputs, tmp_path / "stopped", 5, **more)
    again = resume(tmp_path / "stopped", device="cpu").path
    assert digest(again / "adapter") == digest(run / "adapter")
    asked = [(event["step"], event["samples"]) for event in read_events(again) if event["event"] == "samples"]
    assert asked == [(event["step"], event["samples"]) for event in found]


def test_a_model_that_breaks_between_steps_is_told_as_not_finite(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KTO measures mismatched answers before the step itself."""
    found: list[SupervisedModel] = []
    forward = SupervisedModel.forward

    def remembered(self: SupervisedModel, row: Any) -> Any:
        found[:] = [self]
        return forward(self, row)

    def corrupt() -> None:
        with torch.no_grad():
            next(p for p in found[0].parameters() if p.requires_grad)[0, 0] = float("nan")

    monkeypatch.setattr(SupervisedModel, "forward", remembered)
    listener = Listener(after={2: corrupt})
    with pytest.raises(NonFiniteError, match="step 3 is not finite"):
        train(inputs.recipe(tmp_path / "run", **keys("kto")), device="cpu", reporter=listener)
    assert list(read_events(tmp_path / "run"))[-1]["event"] == "not finite"


def test_a_base_without_finite_numbers_is_no_reference(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = answer_meter.measure_answers
    monkeypatch.setattr(answer_meter, "measure_answers", lambda *args: [sums * float("nan") for sums in measure(*args)])
    with pytest.raises(NonFiniteError, match="before the first step"):
        train(inputs.recipe(tmp_path / "run", **keys()), device="cpu")
    assert not list((tmp_path / "cache" / "weitune" / "references").rglob("*.safetensors"))


def test_disliked_answers_alone_are_a_validation_too(inputs: Inputs, tmp_path: Path) -> None:
    held = inputs.folder / "held.jsonl"
    disliked = [json.dumps({**row, "label": False}, ensure_ascii=False) for row in rows("judged")[:4]]
    held.write_text("\n".join(disliked))
    run = train(inputs.recipe(tmp_path / "run", **keys("kto", validation=[str(held)])), device="cpu").path
    told = [event for event in read_events(run) if event["event"] == "validation"]
    assert told
    for event in told:
        assert math.isfinite(event["loss"])
        assert event["perplexity"] == "nan"
        assert event["learned_tokens"] == 0
