"""``weitune eval`` on a tiny run: its losses are those of training, and everything stands in the folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import make_inputs
from weitune import Run, cli
from weitune.data.frame.chat import ChatFraming
from weitune.evaluate import run_evaluation
from weitune.evaluate.evaluation import read_evaluation
from weitune.evaluate.evaluation_set import Question
from weitune.evaluate.general import general_questions
from weitune.generate.engine import Engine
from weitune.generate.stream import Answer
from weitune.run.events import read_events
from weitune.training.run import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        inputs = make_inputs(folder / "inputs")
        keys = {"validation": 0.3, "train.evaluate_every": 4, "train.sample_prompts": [], "train.keep_checkpoints": 9}
        yield train(inputs.recipe(folder / "run", **keys), device="cpu").path


def evaluate(run: Path, *more: str) -> int:
    short = ["--max-new-tokens", "5", "--device", "cpu"]
    return cli.main(["eval", str(run), *short, *more])


def test_all_checkpoints_have_the_losses_of_training(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run, "--checkpoint", "all", "--no-general", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert [model["step"] for model in found["models"]] == [None, *Run(run).checkpoints()]
    told = {event["step"]: event["loss"] for event in read_events(run) if event["event"] == "validation"}
    assert found["models"][0]["loss"] == pytest.approx(told[0], abs=1e-4)
    for model in found["models"][1:]:
        assert model["loss"] == pytest.approx(told[model["step"]], abs=1e-4)
    assert found["rows"] == {"name": "0.3 of the data, held out", "examples": 6, "questions": 6}
    for answer in found["answers"]:
        assert answer["reference"]
        assert set(answer["said"]) == {model["which"] for model in found["models"]}


def test_answers_are_kept_to_a_schema(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llguidance")
    schema = {"enum": ["涨潮", "low"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    options = ["--no-general", "--training-rows", "0", "--output", str(tmp_path), "--schema"]
    assert evaluate(run, "--max-new-tokens", "9", *options, str(tmp_path / "schema.json")) == 0
    assert "answers to the questions are kept to a JSON schema" in capsys.readouterr().out
    assert "Answers to the questions were kept to a JSON schema." in (tmp_path / "report.html").read_text("utf-8")
    found = read_evaluation(tmp_path)
    assert found is not None
    assert found.schema == schema
    assert {said for answer in found.answers for said in answer.said.values()} <= {'"涨潮"', '"low"'}


def test_what_a_person_sees(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run, "--limit", "2", "--batch-size", "16") == 0
    shown = capsys.readouterr().out
    for word in ("perplexity", "chrF", "BLEU", "ROUGE-L", "stopped", "general: right, zh", "base", "last"):
        assert word in shown
    found = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert len(found["answers"]) == 2
    assert len(found["general"]) == len(general_questions()) == 400


def test_the_gate_exits_with_4_after_everything_is_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--limit", "2", "--batch-size", "16", "--gate", "--training-rows", "3"]
    loose = ["--max-general-drop", "100", "--max-stop-drop", "100", "--max-repetition-rise", "100"]
    assert evaluate(run, *short, *loose) == 0
    found = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert found["gate"]["passed"] is True
    assert {check["measure"] for check in found["gate"]["checks"]} == {"general", "stopped", "repeating"}
    assert found["models"][1]["memorised"]["asked"] <= 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weitune.evaluate.gate._POINTS", -1e9)  # any change at all is too much
        patch.setattr("weitune.evaluate.gate._ROUNDING", -1.0)
        (run / "evaluation.json").unlink()
        assert evaluate(run, *short, "--max-general-drop", "0", "--max-stop-drop", "0") == 4
    assert "did not pass" in capsys.readouterr().err
    assert json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["gate"]["passed"] is False


def test_a_bound_without_the_gate_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run, "--max-stop-drop", "3") == 2
    assert "--gate" in capsys.readouterr().err
    assert evaluate(run, "--gate", "--no-general") == 2
    assert "nothing that --gate could judge" in capsys.readouterr().err


def test_answers_in_batches_are_those_of_the_model_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run, "--no-general", "--json", "--limit", "6", "--batch-size", "4") == 0
    found = json.loads(capsys.readouterr().out)
    for answer in found["answers"]:
        assert answer["said"]["last"] == Run(run).chat(answer["prompt"], max_new_tokens=5, device="cpu")


def test_what_a_base_says_in_general_is_asked_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second time it comes from the cache; a damaged file does not count, nor does one of other answers' length."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(run_evaluation, "general_questions", lambda: general_questions(per_language=3))
    asked: list[str] = []
    ask = run_evaluation._answers

    def listening(engine: Engine, questions: Sequence[Question], *more: Any, **options: Any) -> list[Answer]:
        asked.extend(question.text for question in questions)
        return ask(engine, questions, *more, **options)

    monkeypatch.setattr(run_evaluation, "_answers", listening)

    def told(*more: str) -> Any:
        asked.clear()
        assert evaluate(run, "--limit", "2", "--training-rows", "0", "--json", *more) == 0
        return json.loads(capsys.readouterr().out)

    first = told()
    assert len(asked) == 2 * (2 + 6)
    (kept,) = (tmp_path / "weitune" / "general").iterdir()
    assert told() == first
    assert len(asked) == 2 * 2 + 6
    for damaged in ("", "{}", json.dumps({**json.loads(kept.read_text(encoding="utf-8")), "answers": ["one"]})):
        kept.write_text(damaged, encoding="utf-8")
        assert told() == first
        assert len(asked) == 2 * (2 + 6)
    told("--batch-size", "3")
    assert len(asked) == 2 * (2 + 6)
    described = ChatFraming.describe
    monkeypatch.setattr(ChatFraming, "describe", lambda self: {**described(self), "template": "an adapter's own"})
    told()
    assert len(asked) == 2 * (2 + 6)


def test_rows_of_ones_own(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.json").write_text(json.dumps([{"instruction": "Hi", "input": "", "output": "Ho"}]))
    assert evaluate(run, "--data", str(tmp_path / "own.json"), "--no-general", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [answer["prompt"] for answer in found["answers"]] == ["Hi"]


def test_what_was_learned_by_heart_is_measured_beside_rows_of_ones_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.json").write_text(json.dumps([{"instruction": "Hi", "input": "", "output": "Ho"}]))
    own = ["--data", str(tmp_path / "own.json"), "--no-general", "--json", "--max-new-tokens", "40"]
    assert evaluate(run, *own, "--training-rows", "3") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["models"][1]["memorised"]["asked"] == 3
    assert "not measured" not in told.err
    assert evaluate(run, *own, "--training-rows", "3", "--max-new-tokens", "1") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["models"][1]["memorised"] is None
    assert "raise --max-new-tokens" in told.err


def test_that_it_is_not_measured_is_said_where_the_data_are_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.tiny import save_tiny_run

    run = save_tiny_run(tmp_path / "run")
    (tmp_path / "own.json").write_text(json.dumps([{"instruction": "Hi", "input": "", "output": "Ho"}]))
    own = ["--data", str(tmp_path / "own.json"), "--no-general", "--json"]
    assert evaluate(run, *own) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["models"][1]["memorised"] is None
    assert "not there" in told.err
    assert evaluate(run, *own, "--training-rows", "0") == 0
    assert "not measured" not in capsys.readouterr().err


def test_thinking_models_are_asked_in_general_without_a_thought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.tiny import save_tiny_run

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(run_evaluation, "general_questions", lambda: general_questions(["en"], per_language=2))
    asked: list[str] = []
    generate = Engine.answers_to

    def listening(engine: Engine, prompts: Sequence[Sequence[int]], *more: Any, **options: Any) -> list[Answer]:
        asked.extend(engine.tokenizer.decode(prompt) for prompt in prompts)
        return generate(engine, prompts, *more, **options)

    monkeypatch.setattr(Engine, "answers_to", listening)
    (tmp_path / "own.json").write_text(json.dumps([{"instruction": "Hi", "input": "", "output": "Ho"}]))
    ways: dict[str, Any] = {"free": {}, "thinking": {"tokens": {"template_args": {"enable_thinking": True}}}}
    for name, keys in ways.items():
        asked.clear()
        run = save_tiny_run(tmp_path / name, "qwen3", **keys)
        assert evaluate(run, "--data", str(tmp_path / "own.json"), "--training-rows", "0") == 0
        assert len(asked) == 2 * 3
        assert sum("<think>\n\n</think>" in prompt for prompt in asked) == (4 if name == "free" else 0)


def test_that_the_data_have_changed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = make_inputs(tmp_path / "inputs")
    keys = {"validation": 0.3, "train.max_steps": 1, "train.sample_prompts": []}
    folder = train(inputs.recipe(tmp_path / "run", **keys), device="cpu").path
    assert evaluate(folder, "--no-general", "--limit", "1") == 0
    assert "not those that the run was trained on" not in capsys.readouterr().err
    rows = json.loads(inputs.data.read_text(encoding="utf-8"))
    inputs.data.write_text(json.dumps(rows[::-1], ensure_ascii=False), encoding="utf-8")
    assert evaluate(folder, "--no-general", "--limit", "1") == 0
    assert "not those that the run was trained on" in capsys.readouterr().err


def test_what_was_measured_is_written_before_a_judge_is_asked(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = ["--judge", "http://127.0.0.1:9/v1", "--output", str(tmp_path / "out")]
    assert evaluate(run, "--no-general", "--limit", "1", *judge) == 2
    found = read_evaluation(tmp_path / "out")
    assert found is not None
    assert len(found.answers) == 1


def test_without_sacrebleu_nothing_is_measured(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setattr(Run, "engine", None)  # would be called to measure
    assert evaluate(run) == 2
    assert "weitune[eval]" in capsys.readouterr().err


def test_a_judge_needs_questions(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weitune.evaluate.evaluation_set.questions_in", lambda files, recipe: [])
    (tmp_path / "own.json").write_text(json.dumps([{"instruction": "Hi", "input": "", "output": "Ho"}]))
    judge = ["--judge", "http://127.0.0.1:9/v1", "--judge-model", "m"]
    assert evaluate(run, "--data", str(tmp_path / "own.json"), "--output", str(tmp_path / "out"), *judge) == 2
    assert "there is nothing to judge" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_without_validation_says_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.tiny import save_tiny_run

    assert cli.main(["eval", str(save_tiny_run(tmp_path / "run")), "--device", "cpu"]) == 2
    assert "--data FILE" in capsys.readouterr().err
    assert not (tmp_path / "run" / "evaluation.json").exists()


@pytest.mark.parametrize("checkpoint", ["777", "best-of-all"])
def test_a_checkpoint_that_is_not_there(run: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run, "--checkpoint", checkpoint) == 2
    assert checkpoint in capsys.readouterr().err
