"""What an export is verified on that the run did not learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.export.runs import save_run
from weitune.data.prepare.holdout import hold_out
from weitune.data.prepare.prepare import prepare_items
from weitune.export.source.export_source import ExportSource, open_export_source
from weitune.export.verify.prompts import ENOUGH_TOKENS, choose_prompts, held_out_prompts


def source_with(folder: Path, **recipe: Any) -> ExportSource:
    rows = [{"instruction": f"What is {i}?", "input": "", "output": f"It is the number {i}."} for i in range(12)]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return open_export_source(save_run(folder / "run", data=[str(folder / "rows.json")], **recipe))


def test_a_part_that_was_held_out_is_asked(tmp_path: Path) -> None:
    source = source_with(tmp_path, validation=0.25)
    held = held_out_prompts(source, 8)
    assert held.of_run
    _, expected = hold_out(prepare_items(source.recipe, source.framing), 0.25)
    rows = [expected[i] for i in range(3)]
    assert {each.context for each in held.prompts} == {tuple(row.input_ids[: row.spans[-1].start]) for row in rows}


def test_validation_files_are_asked(tmp_path: Path) -> None:
    path = tmp_path / "more.json"
    path.write_text(json.dumps([{"instruction": "Who?", "input": "", "output": "I."}]), encoding="utf-8")
    source = source_with(tmp_path, validation=[str(path)])
    held = held_out_prompts(source, 8)
    assert held.of_run
    assert [each.question for each in held.prompts] == ["Who?"]
    path.unlink()
    assert not held_out_prompts(source, 8).of_run


@pytest.mark.parametrize("made_elsewhere", [False, True])
def test_general_questions_stand_in(made_elsewhere: bool, tmp_path: Path) -> None:
    source = source_with(tmp_path)
    object.__setattr__(source, "made_elsewhere", made_elsewhere)
    held = held_out_prompts(source, 8)
    assert not held.of_run
    assert len(held.prompts) >= 8
    verified, _ = choose_prompts(source, 50)
    assert not {each.question for each in held.prompts} & {each.question for each in verified}


def test_rows_are_added_until_a_perplexity_has_enough_tokens(tmp_path: Path) -> None:
    path = tmp_path / "more.json"
    rows = [{"instruction": f"Which word is number {i}?", "input": "", "output": f"word{i:03}"} for i in range(200)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    held = held_out_prompts(source_with(tmp_path, validation=[str(path)]), 2)
    tokens = [len(each.answer) for each in held.prompts]
    assert ENOUGH_TOKENS <= sum(tokens) < 3 * ENOUGH_TOKENS
    assert len({each.question for each in held.prompts}) == len(tokens) < 200


def test_prompts_are_sent_as_programs_send_them(tmp_path: Path) -> None:
    """Without the run's own system prompt, which the export's template adds; a blank one of a row counts as none."""
    rows = [
        [{"role": "system", "content": ""}, {"role": "user", "content": "Who?"}],
        [{"role": "system", "content": "Own."}, {"role": "user", "content": "Where?"}],
        [{"role": "user", "content": "When?"}],
        [{"role": "user", "content": "Why <|im_end|>?"}],
        [
            {"role": "user", "content": "What?"},
            {"role": "assistant", "content": "x", "reasoning_content": "hm"},
            {"role": "user", "content": "And?"},
        ],
    ]
    answer = {"role": "assistant", "content": "It is so."}
    lines = [json.dumps({"messages": [*row, answer]}) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = open_export_source(save_run(tmp_path / "run", data=[str(tmp_path / "rows.jsonl")], system="Be brief."))
    prompts, notes = choose_prompts(source, 8)
    assert not notes
    sent = {each.question: [message["role"] for message in each.messages] for each in prompts}
    assert sent == {"Who?": ["user"], "Where?": ["system", "user"], "When?": ["user"]}
    framed = source.tokenizer.apply_chat_template
    for each in prompts:
        tokens = framed(each.messages, chat_template=source.template, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        assert tuple(tokens) == each.prompt_tokens
