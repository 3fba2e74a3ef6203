"""What can be kept: prompts without the run's system prompt, answer by answer, and all of it short enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save_tiny
from weitune.data.conversation import Conversation, Turn
from weitune.data.frame.framing import Framing
from weitune.data.keep.rows import SHIPPED, shipped_prompts
from weitune.data.prepare.holdout import hold_out
from weitune.data.prepare.prepare import prepare_items
from weitune.errors import DataError, RunError
from weitune.model.load.locate import locate
from weitune.model.load.tokenizer import open_framing
from weitune.recipe.load import build_recipe, dump_recipe
from weitune.recipe.schema import Recipe
from weitune.training.keep.candidates import Candidates


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("keep") / "model")


def framing_of(recipe: Recipe) -> Framing:
    return open_framing(locate(recipe.model), recipe.tokens).framing


def candidates(model: Path, **keys: Any) -> tuple[Candidates, Framing]:
    tree = {"model": str(model), "data": ["unused.json"], "system": "You are Tiny."}
    recipe = build_recipe(tree, {"keep.share": 0.1, **keys})
    framing = framing_of(recipe)
    assert recipe.keep is not None
    return Candidates.of(recipe, recipe.keep, framing, ()), framing


def written(path: Path, *rows: object) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_prompts_are_asked_without_the_system_prompt_of_the_run(model: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "prompts.jsonl", {"prompt": "Say one."})
    found, framing = candidates(model, **{"keep.data": [file]})
    assert found.prompts == [tuple(framing.prompt(Conversation((Turn("user", "Say one."),))))]
    assert found.examples == []


@pytest.mark.parametrize("name", SHIPPED)
def test_the_prompts_of_one_language_are_named(name: str, model: Path) -> None:
    found, _ = candidates(model, **{"keep.data": [name]})
    both, _ = candidates(model)
    assert len(found.prompts) == len(shipped_prompts(SHIPPED[name]))
    assert len(both.prompts) == sum(len(shipped_prompts(language)) for language in SHIPPED.values())


def test_of_a_dialogue_each_answer_is_an_example(model: Path, tmp_path: Path) -> None:
    turns = [("user", "Hi"), ("assistant", "Ho"), ("user", "And now?"), ("assistant", "Now this.")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    found, framing = candidates(model, **{"keep.data": [written(tmp_path / "rows.jsonl", row)]})
    dialogue = Conversation(tuple(Turn(role, content) for role, content in turns))  # type: ignore[arg-type]
    for at, example in zip((1, 3), found.examples, strict=True):
        (span,) = example.spans
        assert list(example.input_ids[: span.start]) == framing.prompt(dialogue.before(at))
        assert example.input_ids[-1] == framing.end_of_turn
        assert (span.stop, span.weight) == (len(example.input_ids), 1.0)


def test_what_leaves_no_room_is_left_out_and_counted(model: Path, tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten " * 20
    prompts = written(tmp_path / "prompts.jsonl", {"prompt": "Hi"}, {"prompt": long})
    rows = written(tmp_path / "rows.jsonl", {"prompt": "Hi", "completion": "Ho"}, {"prompt": "Hi", "completion": long})
    found, _ = candidates(model, **{"keep.data": [prompts, rows], "tokens.max_length": 100})
    assert (len(found.prompts), len(found.examples), found.too_long) == (1, 1, 2)


@pytest.mark.parametrize("own", ["你是谁", "  Say  ONE!"])
def test_what_the_runs_own_rows_ask_is_left_out_and_counted(own: str, model: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "data.jsonl", {"instruction": own, "output": "I am Tiny."})
    prompts = written(tmp_path / "prompts.jsonl", *({"prompt": text} for text in ("你是谁？", "Say one.", "Say two.")))
    answered = ({"prompt": text, "completion": "Ho"} for text in ("Say one.", "你是谁？", "Say three."))
    rows = written(tmp_path / "rows.jsonl", *answered)
    found, _ = candidates(model, data=[data], **{"keep.data": [prompts, rows]})
    assert (len(found.prompts), len(found.examples), found.taught) == (2, 2, 2)


def test_the_last_question_of_a_dialogue_is_asked_by_the_run(model: Path, tmp_path: Path) -> None:
    turns = [("user", "Hi"), ("assistant", "Ho"), ("user", "Who are you?"), ("assistant", "Tiny.")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    data = written(tmp_path / "data.jsonl", row)
    prompts = written(tmp_path / "prompts.jsonl", *({"prompt": text} for text in ("who are you", "Hi", "Why?")))
    found, framing = candidates(model, data=[data], **{"keep.data": [prompts]})
    assert found.prompts == [tuple(framing.prompt(Conversation((Turn("user", "Why?"),))))]


def test_a_run_that_asks_all_that_is_named_is_refused(model: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "data.jsonl", {"instruction": "Hi", "output": "Ho"})
    with pytest.raises(DataError, match="nothing is left"):
        candidates(model, data=[data], **{"keep.data": [written(tmp_path / "prompts.jsonl", {"prompt": "Hi"})]})


@pytest.mark.parametrize(("system", "left"), [("You are Tiny.", 1), ("You are Huge.", 2)])
def test_rows_of_an_earlier_run_that_the_run_asks_in_the_same_way_are_left_out(
    system: str, left: int, model: Path, tmp_path: Path
) -> None:
    rows = [{"instruction": text, "output": "Ho"} for text in ("Hi", "Who are you?")]
    earlier = build_recipe({"model": str(model), "data": [written(tmp_path / "a.jsonl", *rows)], "system": system})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(earlier), encoding="utf-8")
    tree = {"model": str(model), "data": [written(tmp_path / "b.jsonl", rows[1])], "system": "You are Tiny."}
    recipe = build_recipe(tree, {"keep.run": str(tmp_path)})
    framing = framing_of(recipe)
    assert recipe.keep is not None
    found = Candidates.of(recipe, recipe.keep, framing, [prepare_items(recipe, framing)])
    assert (len(found.examples), found.taught) == (left, 2 - left)


@pytest.mark.parametrize("method", [None, "kto"])
@pytest.mark.parametrize("max_length", [1024, 2048])
def test_rows_that_an_earlier_run_held_out_stay_unlearned(
    max_length: int, method: str | None, model: Path, tmp_path: Path
) -> None:
    asked = [f"What is {n}?" for n in range(20)]
    liked = {"label": True} if method else {}
    data = written(tmp_path / "data.jsonl", *({"prompt": text, "completion": "Ho", **liked} for text in asked))
    tree = {"model": str(model), "data": [data], "validation": 0.3, "preference": method}
    earlier = build_recipe(tree, {"tokens.max_length": max_length})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(earlier), encoding="utf-8")
    found, framing = candidates(model, **{"keep.run": str(tmp_path), "tokens.max_length": 1024})
    learned, held = hold_out(prepare_items(earlier, framing), 0.3)
    assert len(held) == 6
    assert [each.origin for each in found.examples] == [learned[i].origin for i in range(len(learned))]


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_of_an_earlier_run_on_preferences_the_better_answers_are_kept(model: Path, tmp_path: Path, method: str) -> None:
    data = written(tmp_path / "pairs.jsonl", {"prompt": "Who?", "chosen": "The captain.", "rejected": "A model."})
    earlier = build_recipe({"model": str(model), "data": [data], "preference": method})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(earlier), encoding="utf-8")
    found, framing = candidates(model, **{"keep.run": str(tmp_path)})
    dialogue = Conversation((Turn("user", "Who?"), Turn("assistant", "The captain.")))
    (expected,) = framing.examples(dialogue)
    assert [(each.input_ids, each.spans) for each in found.examples] == [
        (expected.input_ids[: expected.spans[-1].stop], expected.spans)
    ]


def test_a_folder_that_is_no_run_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"keep\.run: '.*typo' is not the folder of a run"):
        candidates(model, **{"keep.run": str(tmp_path / "typo")})
