"""Runs that keep what the model knew: the same bits after a stop, from the folder alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.faults.runs import Inputs, Listener, make_inputs
from weitune.data.conversation import Example
from weitune.data.keep.kept import KeptExamples
from weitune.errors import DataError, Interrupted, RunError
from weitune.generate.engine import BATCH_SIZE
from weitune.progress import Progress
from weitune.recipe.load import build_recipe
from weitune.run.data_record import KeptSize, read_data_record
from weitune.run.events import read_events
from weitune.training.keep.answering import Answering
from weitune.training.keep.candidates import answered
from weitune.training.keep.kept import _enough
from weitune.training.run import resume, train
from weitune.training.run_plan import plan_run
from weitune.training.signals import StopRequest


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_inputs(tmp_path / "inputs")


def keys(folder: Path, **more: object) -> dict[str, object]:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"Say {word}."}) for word in ("one", "two", "three", "four")))
    return {"keep.share": 0.3, "keep.data": [str(prompts)], "keep.max_answer_tokens": 5, **more}


def stopped_after(inputs: Inputs, folder: Path, step: int, **more: object) -> None:
    stop = StopRequest()
    listener = Listener(after={step: lambda: stop.stop("a test")})
    with pytest.raises(Interrupted):
        train(inputs.recipe(folder, **more), device="cpu", stop=stop, reporter=listener)


@pytest.mark.parametrize("target", ["rows", "distill"])
def test_a_stopped_run_resumes_to_the_same_bits_without_the_prompts(
    target: str, inputs: Inputs, tmp_path: Path
) -> None:
    more = keys(tmp_path, **{"keep.target": target})
    whole = train(inputs.recipe(tmp_path / "whole", **more), device="cpu").path
    stopped_after(inputs, tmp_path / "stopped", 5, **more)
    Path(str(more["keep.data"][0])).unlink()  # type: ignore[index]
    resume(tmp_path / "stopped", device="cpu")
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "stopped" / weights).read_bytes() == (whole / weights).read_bytes()
    assert (tmp_path / "stopped" / "kept.safetensors").read_bytes() == (whole / "kept.safetensors").read_bytes()


def test_kept_examples_are_learned_beside_the_runs_own(inputs: Inputs, tmp_path: Path) -> None:
    plain = train(inputs.recipe(tmp_path / "plain"), device="cpu").path
    told = Listener()
    run = train(inputs.recipe(tmp_path / "run", **keys(tmp_path)), device="cpu", reporter=told).path
    kept = KeptExamples.from_bytes((run / "kept.safetensors").read_bytes())
    learned = [
        [event["supervised_tokens"] for event in read_events(folder) if event["event"] == "step"]
        for folder in (plain, run)
    ]
    assert len(learned[0]) == len(learned[1])
    share = 1 - sum(learned[0]) / sum(learned[1])
    assert share == pytest.approx(0.3, abs=0.03)
    assert all(1 <= tokens <= 6 for tokens in kept.supervised)  # an answer, and perhaps its end
    tokens = sum(learned[1]) - sum(learned[0])
    assert f"4 examples with {tokens:,} learned tokens, {share:.1%} of what the run learns" in told.text
    cut = sum(tokens == 5 for tokens in kept.supervised)  # the tiny model does not end by itself
    assert cut
    assert f"of 4 examples to keep, {cut} are answers that were cut after 5 tokens" in told.text
    data = read_data_record(run)
    assert data is not None
    assert data.kept == KeptSize(4, tokens, pytest.approx(share), "rows")
    assert read_data_record(plain).kept is None  # type: ignore[union-attr]


def test_a_share_too_small_for_any_example_is_told(inputs: Inputs, tmp_path: Path) -> None:
    told = Listener()
    train(inputs.recipe(tmp_path / "run", **keys(tmp_path, **{"keep.share": 0.001})), device="cpu", reporter=told)
    assert "nothing is kept" in told.text


class Answers(Listener):
    """Keeps how many learned tokens there were when it was told."""

    def answering(self) -> Progress:
        self.told: list[tuple[int, int | None]] = []
        return lambda done, total: self.told.append((done, total))


def test_no_more_is_answered_than_is_needed_and_every_answer_is_told(inputs: Inputs, tmp_path: Path) -> None:
    prompts = [{"prompt": f"What is {number}?"} for number in range(100)]
    more = keys(tmp_path, **{"keep.share": 0.1})
    Path(str(more["keep.data"][0])).write_text("\n".join(map(json.dumps, prompts)))  # type: ignore[index]
    reporter = Answers()
    run = train(inputs.recipe(tmp_path / "run", **more), device="cpu", reporter=reporter).path
    kept = KeptExamples.from_bytes((run / "kept.safetensors").read_bytes())
    needed = reporter.told[-1][1]
    assert needed is not None
    assert kept.supervised[:-1].sum() < needed <= kept.supervised.sum()
    assert len(reporter.told) % BATCH_SIZE == 1  # after each answer, and at the end
    assert len(reporter.told) < len(kept) + BATCH_SIZE + 1
    assert reporter.told == sorted(reporter.told)


@pytest.mark.parametrize(
    ("lengths", "needed", "taken"),
    [
        ([3, -9, 4, 5], 7, [3, 4]),
        ([-9, 3, 4], 8, [3, 4, -9]),
        ([-9, -8, -7, -6, 3], 6, [-9]),  # four times as many tokens are looked at, no more
        ([-9, 3], 0, [3]),
        ([-9], 0, [-9]),
        ([], 5, []),
    ],
)
def test_answers_that_were_cut_come_last(
    lengths: list[int], needed: int, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weitune.training.keep.kept.BATCH_SIZE", 2)
    made = [answered([1, 2], [7] * abs(length)) for length in lengths]
    ended = {id(example): length > 0 for example, length in zip(made, lengths, strict=True)}
    found = _enough(iter(made), lambda example: ended[id(example)], needed)
    assert [example.supervised * (1 if ended[id(example)] else -1) for example in found] == taken


def test_answers_are_made_once(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = keys(tmp_path)
    first = train(inputs.recipe(tmp_path / "first", **more), device="cpu").path
    monkeypatch.setattr("weitune.training.keep.kept.Answering.__call__", lambda *_: pytest.fail("answered again"))
    second = train(inputs.recipe(tmp_path / "second", **more), device="cpu").path
    for name in ("kept.safetensors", "adapter/adapter_model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    train(inputs.recipe(tmp_path / "third", **{**more, "train.seed": 9, "keep.share": 0.2}), device="cpu")


def test_a_run_that_needs_more_answers_goes_on_where_others_have_ended(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = keys(tmp_path, **{"keep.target": "distill"})
    prompts = [{"prompt": f"What is {number}?"} for number in range(3 * BATCH_SIZE)]
    Path(str(more["keep.data"][0])).write_text("\n".join(map(json.dumps, prompts)))  # type: ignore[index]
    few, many = {**more, "keep.share": 0.05}, {**more, "keep.share": 0.5}
    asked: list[int] = []
    answer = Answering.__call__

    def count(self: Answering, prompts: Sequence[Sequence[int]], learned: Callable[[int], object]) -> list[Example]:
        asked.append(len(prompts))
        return answer(self, prompts, learned)

    monkeypatch.setattr("weitune.training.keep.kept.Answering.__call__", count)
    train(inputs.recipe(tmp_path / "few", **few), device="cpu")
    started = len(asked)
    later = train(inputs.recipe(tmp_path / "later", **many), device="cpu").path
    assert started < len(asked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    shared = len(asked)
    alone = train(inputs.recipe(tmp_path / "alone", **many), device="cpu").path
    assert len(asked) == 2 * shared
    assert (later / "kept.safetensors").read_bytes() == (alone / "kept.safetensors").read_bytes()


def test_a_cache_that_is_damaged_or_closed_costs_nothing_but_time(inputs: Inputs, tmp_path: Path) -> None:
    more = keys(tmp_path)
    first = train(inputs.recipe(tmp_path / "first", **more), device="cpu").path
    (cached,) = (tmp_path / "cache").rglob("kept/*.safetensors")
    whole = cached.read_bytes()
    cached.write_bytes(whole[:-2])
    second = train(inputs.recipe(tmp_path / "second", **more), device="cpu").path
    assert cached.read_bytes() == whole
    cached.unlink()
    cached.parent.rmdir()
    cached.parent.write_text("a file where the folder would be")
    third = train(inputs.recipe(tmp_path / "third", **more), device="cpu").path
    adapters = {(run / "adapter/adapter_model.safetensors").read_bytes() for run in (first, second, third)}
    assert len(adapters) == 1


def test_a_model_that_is_trained_whole_keeps_too(inputs: Inputs, tmp_path: Path) -> None:
    more = keys(tmp_path, lora="none")
    whole = train(inputs.recipe(tmp_path / "whole", **more), device="cpu").path
    stopped_after(inputs, tmp_path / "stopped", 5, **more)
    resume(tmp_path / "stopped", device="cpu")
    weights = "adapter/model.safetensors"
    assert (tmp_path / "stopped" / weights).read_bytes() == (whole / weights).read_bytes()


def test_the_rows_of_an_earlier_run_are_learned_again(inputs: Inputs, tmp_path: Path) -> None:
    rows = [{"instruction": f"What is {n}?", "output": "A number."} for n in range(20)]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(rows))
    earlier = train(inputs.recipe(tmp_path / "earlier", data=[str(other)]), device="cpu").path
    more = {"keep.share": 0.3, "keep.run": str(earlier), "lora.init_from": str(earlier)}
    run = train(inputs.recipe(tmp_path / "run", **more), device="cpu").path
    kept = KeptExamples.from_bytes((run / "kept.safetensors").read_bytes())
    examples = [kept[i] for i in range(len(kept))]
    assert len({example.input_ids for example in examples}) == len(examples) > 10
    assert len({example.input_ids[example.spans[0].start :] for example in examples}) == 1  # "A number."


@pytest.mark.parametrize("damage", ["missing", "damaged", "other"])
def test_what_the_folder_has_lost_is_not_replaced(damage: str, inputs: Inputs, tmp_path: Path) -> None:
    stopped_after(inputs, tmp_path / "run", 5, **keys(tmp_path))
    file = tmp_path / "run" / "kept.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "damaged":
        file.write_bytes(file.read_bytes()[:-3])
    else:
        kept = KeptExamples.from_bytes(file.read_bytes())
        file.write_bytes(KeptExamples([kept[0]]).to_bytes())
    with pytest.raises(RunError, match=r"kept|keep\.contents"):
        resume(tmp_path / "run", device="cpu")


def test_a_plan_counts_them_before_there_are_answers(inputs: Inputs, tmp_path: Path) -> None:
    plain = plan_run(inputs.recipe(tmp_path / "run"), device="cpu")
    plan = plan_run(inputs.recipe(tmp_path / "run", **keys(tmp_path)), device="cpu")
    assert plan.inputs is not None
    assert plain.inputs is not None
    assert plan.inputs.plan.steps == plain.inputs.plan.steps
    assert len(plan.inputs.examples) == len(plain.inputs.examples) + 4
    (note,) = set(plan.notes) - set(plain.notes)
    assert "`keep` adds about" in note
    assert "30.0% of what the run learns" in note


def test_a_number_is_the_share() -> None:
    tree = {"model": "m", "data": "d"}
    assert build_recipe(tree, {"keep": 0.2}).keep == build_recipe(tree, {"keep.share": 0.2}).keep
    assert build_recipe(tree, {"keep": "0.2"}).keep == build_recipe(tree, {"keep.share": 0.2}).keep
    assert build_recipe(tree).keep is None


def test_nothing_that_fits_is_an_error(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="max_length"):
        train(inputs.recipe(tmp_path / "run", **keys(tmp_path, **{"keep.max_answer_tokens": 5000})), device="cpu")
    assert not (tmp_path / "run").exists()
